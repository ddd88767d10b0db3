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
from diffjax.progress import compiling
from diffjax.runs.checkpoints import Checkpoints
from diffjax.runs.state import TrainState
from diffjax.training.logging import MetricsLog, NullLog
from diffjax.training.metric_means import MetricMeans
from diffjax.training.step import Metrics
from diffjax.typing import Batch

_SPIKE = 6.0  # standard deviations of a loss above its mean that are reported
_WATCHED = ("consecutive_skips", "loss_deviation")  # metrics that are read at every step

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Preview = Callable[[int, TrainState], None]
Evaluate = Callable[[TrainState], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Number of training steps, and the number of steps between actions (0: never)."""

    steps: int
    log_every: int
    sample_every: int
    checkpoint_every: int
    ema_every: int = 0
    eval_every: int = 0


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
    """Logs the means of the metrics of steps and saves states.

    Attributes:
      warn: returns a warning about the metrics of a line of the log, or None. Each warning is printed once.
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
    means: MetricMeans = dataclasses.field(default_factory=MetricMeans)  # of the steps since the last line

    def log_step(
        self,
        step: int,
        metrics: Metrics,
        state: Callable[[], TrainState],
        *,
        is_due: bool,
        write: Callable[[str], None],
        measure: Callable[[], Mapping[str, float]] = dict,
    ) -> dict[str, float]:
        """Adds the metrics of a step to the means.

        The means are logged if `is_due`, if the step was skipped, or if its loss spikes.

        Args:
          metrics: metrics of the step on the device.
          state: returns the newest state, which no later step has changed.
          write: prints a line.
          measure: returns other metrics of the line, such as `images_per_second`.

        Returns:
          The logged metrics, {} if nothing is logged.

        Raises:
          NotFinite: more than `max_consecutive_skips` consecutive steps were skipped.
        """
        self.means.add(metrics)
        # Waits for the step, while the next one runs.
        consecutive_skips, deviation = jax.device_get([metrics.get(name, 0) for name in _WATCHED])
        if consecutive_skips > self.max_consecutive_skips:
            values = _non_finite_values(metrics)
            raise _not_finite(step, int(consecutive_skips), values, state(), self.checkpoints.latest_step())
        has_spike = not consecutive_skips and deviation > _SPIKE
        if consecutive_skips:
            write(f"step {step} is skipped: {_non_finite_values(metrics)}")
        elif has_spike:
            write(f"step {step}: the loss is {deviation:.0f} standard deviations above its recent mean")
        if is_due or consecutive_skips or has_spike:
            return self.log_means(step, write=write, measure=measure)
        return {}

    def log_means(
        self, step: int, *, write: Callable[[str], None], measure: Callable[[], Mapping[str, float]] = dict
    ) -> dict[str, float]:
        """Logs the means of the steps since the last line, if there are any. Returns the logged metrics."""
        values = self.means.read()
        if not values:
            return {}
        measured = measure()
        self.log.scalars(step, {**values, **measured})
        for warning in (self.warn(values), _slow_input(measured)):
            if warning not in self.warnings:
                self.warnings.add(warning)
                write(f"step {step}: {warning}")
        return {**values, **measured}

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
    evaluate: Evaluate | None = None,
) -> tuple[TrainState, int | None]:
    """Trains from step `start` to `intervals.steps`.

    A line of the log has the means over the steps since the line before. There is one at each checkpoint, so that a
    resumed run starts new means where an uninterrupted run does.

    It is found out whether a step was skipped while the next step runs. A state is saved only after `recorder` has
    accepted the metrics of its step. On SIGTERM, SIGHUP or Ctrl-C the current step is completed and saved; a
    compilation, a preview or an evaluation in progress is abandoned.

    Args:
      batches: batches from that of step `start` on.
      batch_size: images per step, over all processes.
      preview: saves previews with the state of a step.
      preview_first: save those of step `start` first, as the run ended after its checkpoint and before its previews.
      evaluate: returns held-out metrics of a state, which are logged with those of its step; None: no evaluation.

    Returns:
      The last state, and the signal that ended the run early, or None.

    Raises:
      NotFinite: too many consecutive steps had non-finite gradients or metrics.
    """
    pending: tuple[int, Metrics] | None = None
    with StopSignal() as stop, _progress_bar(start, intervals.steps) as bar:
        speed = _Speed(batch_size)

        def log(step: int, *, held_out: Mapping[str, float] = MappingProxyType({}), is_due: bool = False) -> None:
            """Logs the pending step, or with `is_due` the means up to `step` if no step is pending."""
            nonlocal pending
            options: Any = {"write": bar.write, "measure": lambda: {**held_out, **speed.read()}}
            if pending is not None:
                (step, metrics), pending = pending, None
                is_due |= _is_due(step, intervals.log_every)
                speed.steps += 1
                values = recorder.log_step(step, metrics, lambda: state, is_due=is_due, **options)
                bar.update(1)
            else:
                values = recorder.log_means(step, **options) if is_due else {}
            _show(bar, values)

        def first_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            with compiling("the training step"):
                return train_step(state, batch)

        if preview_first:
            stop.run_interruptible(_save_preview, preview, start, state, bar.write)
        speed.restart()
        for step in range(start + 1, intervals.steps + 1):
            is_first = step == start + 1
            with speed.excluded() if is_first else speed.waiting():  # threads and workers start with the first batch
                batch = next(batches)
            if is_first:
                with speed.excluded():
                    result = stop.run_interruptible(first_step, state, batch)
                if result is None:
                    break
                state, metrics = result
            else:
                state, metrics = train_step(state, batch)
            log(step)
            stop.agree()
            pending = step, metrics
            is_last = step == intervals.steps
            if (
                evaluate
                and not stop.signal
                and intervals.eval_every
                and (is_last or _is_due(step, intervals.eval_every))
            ):
                jax.block_until_ready(metrics)  # the step counts as training
                with speed.excluded():
                    held_out = stop.run_interruptible(evaluate, state) or {}
                log(step, held_out=held_out, is_due=True)
            if is_last or _is_due(step, intervals.ema_every):
                log(step, is_due=is_last)
                recorder.save_averages(step, state)  # before the checkpoint, so that resuming skips none
            if is_last or _is_due(step, intervals.checkpoint_every):
                log(step, is_due=True)
                with speed.excluded():
                    recorder.save(step, state)
            if not stop.signal and (is_last or _is_due(step, intervals.sample_every)):
                log(step)
                with speed.excluded():
                    stop.run_interruptible(_save_preview, preview, step, state, bar.write)
            if stop.signal:
                log(step, is_due=True)
                recorder.save(step, state)  # does nothing if it is saved already
                break
        recorder.wait()  # inside of StopSignal, so that no signal interrupts the last save
    return state, stop.signal


class _Speed:
    """Measures the images per second of training steps, and the share of their time spent waiting for data."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self.steps, self._waited, self._since = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures a block that waits for data."""
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Excludes the time of a block: a compilation, a preview, a save."""
        before = time.monotonic()
        yield
        self._since += time.monotonic() - before

    def read(self) -> dict[str, float]:
        """Returns `images_per_second` and `data_wait`, the share of time waiting for data, since the last call."""
        elapsed = max(time.monotonic() - self._since, 1e-9)
        metrics = {"images_per_second": self.steps * self._batch_size / elapsed, "data_wait": self._waited / elapsed}
        self.restart()
        return metrics


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


def _non_finite_values(metrics: Metrics) -> str:
    values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
    return ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))


def _not_finite(step: int, consecutive_skips: int, values: str, state: TrainState, last_saved: int | None) -> NotFinite:
    checkpoint = "there is no checkpoint yet" if last_saved is None else f"the last checkpoint is of step {last_saved}"
    before = f", as in the {consecutive_skips - 1} steps before" if consecutive_skips > 1 else ""
    return NotFinite(
        f"step {step}: {values}{before}; {checkpoint}; try a lower train.learning_rate, more "
        "train.warmup_steps, a smaller train.clip_norm, or dtype='float32'",
        step - consecutive_skips + 1,
        state,
    )


def _progress_bar(start: int, stop: int) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 10  # seconds
    hidden = not multihost.is_main_process()
    return tqdm(disable=hidden, total=stop, initial=start, unit="step", dynamic_ncols=True, mininterval=interval)


def _show(bar: tqdm, metrics: Mapping[str, float]) -> None:
    """Shows the losses, learning rates and speed of a line of the log in the progress bar."""
    if not metrics:
        return
    losses = [f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("loss")]
    rates = [f"lr {value:.2e}" for name, value in metrics.items() if name.endswith("learning_rate")]
    speed = f"{metrics['images_per_second']:.0f} images/s"
    bar.set_postfix_str(" ".join([*losses, *rates, speed]), refresh=False)
