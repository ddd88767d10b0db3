"""The training loop: runs the step on each batch; logs, saves and previews at intervals; stops on signals."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
from tqdm import tqdm

from diffjax.cluster import multihost
from diffjax.cluster.signals import StopSignal
from diffjax.errors import UserError
from diffjax.runs.checkpoints import Checkpoints
from diffjax.runs.state import TrainState
from diffjax.training.logging import MetricsLog, NullLog
from diffjax.training.step import Metrics
from diffjax.typing import Batch

TIMES = ("seconds_per_step", "data_wait")  # metrics of the machine; data_wait: share of the time spent waiting for data
_SPIKE = 6.0  # standard deviations of a loss above its mean that are reported

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Preview = Callable[[int, TrainState], None]


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Number of training steps, and the number of steps between actions (0: never)."""

    steps: int
    log_every: int
    sample_every: int
    checkpoint_every: int
    ema_every: int = 0


class NotFinite(UserError):
    """Raised after too many consecutive steps with non-finite gradients or metrics.

    Attributes:
      step: the first of these steps.
      state: training state before that step, except for its counts of skipped steps.
    """

    def __init__(self, message: str, step: int, state: TrainState):
        super().__init__(message)
        self.step = step
        self.state = state


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Logs the metrics of steps and saves states.

    Attributes:
      warn: returns a warning about the metrics of a step, or None. Each warning is printed once.
      max_consecutive_skips: as for `make_step`.
      before_save: raises UserError if nothing may be saved.
      save_averages: stores the power-function averages of a state.
    """

    log: MetricsLog | NullLog
    checkpoints: Checkpoints
    warn: Callable[[Mapping[str, float]], str | None] = lambda metrics: None
    max_consecutive_skips: int = 0
    before_save: Callable[[], None] = lambda: None
    save_averages: Callable[[int, TrainState], None] = lambda step, state: None
    warnings: set[str | None] = dataclasses.field(default_factory=lambda: {None})  # printed already

    def log_step(
        self,
        step: int,
        metrics: Mapping[str, Any],
        state: Callable[[], TrainState],
        *,
        is_due: bool,
        write: Callable[[str], None],
        speed: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, float]:
        """Logs the metrics of a step if `is_due`, if the step was skipped, or if its loss spikes.

        Args:
          state: returns the newest state, which no later step has changed.
          write: prints a line.
          speed: metrics of TIMES.

        Returns:
          The metrics as numbers.

        Raises:
          NotFinite: more than `max_consecutive_skips` consecutive steps were skipped.
        """
        values = {name: float(value) for name, value in metrics.items()}
        consecutive_skips = int(values.pop("consecutive_skips", 0))
        if consecutive_skips > self.max_consecutive_skips:
            raise _not_finite(step, consecutive_skips, values, state(), self.checkpoints.latest_step())
        has_spike = not consecutive_skips and values.get("loss_deviation", 0.0) > _SPIKE
        if consecutive_skips:
            write(f"step {step} is skipped: {_non_finite_values(values)}")
        elif has_spike:
            write(f"step {step}: the loss is {values['loss_deviation']:.0f} standard deviations above its recent mean")
        if is_due or consecutive_skips or has_spike:
            self.log.scalars(step, {**values, **speed})
            for warning in (self.warn(values), _slow_input(speed)):
                if warning not in self.warnings:
                    self.warnings.add(warning)
                    write(f"step {step}: {warning}")
        return values

    def save(self, step: int, state: TrainState) -> None:
        self.before_save()
        self.checkpoints.save(step, state)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written."""
        self.checkpoints.wait()


def run(
    train_step: TrainStep,
    state: TrainState,
    batches: Iterator[Batch],
    *,
    start: int,
    intervals: Intervals,
    batch_size: int,
    recorder: Recorder,
    preview: Preview = lambda step, state: None,
    preview_first: bool = False,
) -> tuple[TrainState, int | None]:
    """Trains from step `start` to `intervals.steps`.

    The metrics of a step are read while the next step runs. A state is saved only after `recorder` has accepted the
    metrics of its step. On SIGTERM, SIGHUP or Ctrl-C the current step is completed and saved; a compilation or a
    preview in progress is abandoned.

    Args:
      batches: batches from that of step `start` on.
      batch_size: images per step, over all processes.
      preview: saves previews with the state of a step.
      preview_first: save those of step `start` first, as the run ended after its checkpoint and before its previews.

    Returns:
      The last state, and the signal that ended the run early, or None.

    Raises:
      NotFinite: too many consecutive steps had non-finite gradients or metrics.
    """
    pending: tuple[int, Metrics] | None = None
    with StopSignal() as stop, _progress_bar(start, intervals.steps) as bar:
        speed = _Speed()

        def log_pending() -> None:
            nonlocal pending
            if pending is None:
                return
            (step, metrics), pending = pending, None
            is_due = _is_due(step, intervals.log_every) or step == intervals.steps
            values = recorder.log_step(
                step,
                jax.device_get(metrics),
                lambda: state,
                is_due=is_due,
                write=bar.write,
                speed=speed.metrics(),
            )
            if is_due:
                speed.restart()
            _update_bar(bar, values, batch_size)

        if preview_first:
            stop.run_interruptible(_save_preview, preview, start, state, bar.write)
        for step in range(start + 1, intervals.steps + 1):
            with speed.waiting():
                batch = next(batches)
            if step == start + 1:  # compiles
                result = stop.run_interruptible(train_step, state, batch)
                if result is None:
                    break
                state, metrics = result
            else:
                state, metrics = train_step(state, batch)
            speed.steps += 1
            log_pending()
            stop.agree()
            pending = step, metrics
            is_last = step == intervals.steps
            if is_last or _is_due(step, intervals.ema_every):
                log_pending()
                recorder.save_averages(step, state)  # before the checkpoint, so that resuming skips none
            if is_last or _is_due(step, intervals.checkpoint_every):
                log_pending()
                recorder.save(step, state)
            if not stop.signal and (is_last or _is_due(step, intervals.sample_every)):
                log_pending()
                stop.run_interruptible(_save_preview, preview, step, state, bar.write)
            if stop.signal:
                log_pending()
                recorder.save(step, state)  # does nothing if it is saved already
                break
        recorder.wait()  # inside of StopSignal, so that no signal interrupts the last save
    return state, stop.signal


class _Speed:
    """Measures the time per step, and the share of it spent waiting for data."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.steps, self._waited, self._since = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of TIMES."""
        elapsed = time.monotonic() - self._since
        return {"seconds_per_step": elapsed / max(self.steps, 1), "data_wait": self._waited / max(elapsed, 1e-9)}


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _save_preview(preview: Preview, step: int, state: TrainState, write: Callable[[str], None]) -> None:
    try:
        preview(step, state)
    except OSError as error:  # a full disk must not end the run
        write(f"step {step}: the previews cannot be written ({error.strerror})")


def _slow_input(speed: Mapping[str, float]) -> str | None:
    if speed.get("data_wait", 0.0) > 0.5:
        return "training waits for data more than half of the time (data_wait in metrics.jsonl)"
    return None


def _non_finite_values(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value))


def _not_finite(
    step: int, consecutive_skips: int, metrics: Mapping[str, float], state: TrainState, last_saved: int | None
) -> NotFinite:
    checkpoint = "there is no checkpoint yet" if last_saved is None else f"the last checkpoint is of step {last_saved}"
    before = f", as in the {consecutive_skips - 1} steps before" if consecutive_skips > 1 else ""
    return NotFinite(
        f"step {step}: {_non_finite_values(metrics)}{before}; {checkpoint}; try a lower train.learning_rate, more "
        "train.warmup_steps, a smaller train.clip_norm, or dtype='float32'",
        step - consecutive_skips + 1,
        state,
    )


def _progress_bar(start: int, stop: int) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 10  # seconds
    hidden = not multihost.is_main_process()
    return tqdm(disable=hidden, total=stop, initial=start, unit="step", dynamic_ncols=True, mininterval=interval)


def _update_bar(bar: tqdm, metrics: Mapping[str, float], batch_size: int) -> None:
    bar.update(1)
    rate = bar.format_dict["rate"]
    losses = (f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("loss"))
    bar.set_postfix_str(" ".join([*losses, f"{rate * batch_size:.0f} images/s" if rate else ""]), refresh=False)
