"""The loop around the step: what is saved and shown, and when."""

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
from diffjax.training.logging import MetricsLog
from diffjax.training.step import Step

TIMES = ("seconds_per_step", "data_wait")  # of the metrics, what is of the machine: the latter as a share of the time
_SPIKE = 6.0  # standard deviations of a loss that are said


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long to train, and after how many steps each thing is done (0: never)."""

    steps: int
    log_every: int
    sample_every: int
    checkpoint_every: int


class NotFinite(UserError):
    """Too many steps in a row whose gradient or metrics are not finite."""

    def __init__(self, message: str, step: int, state: TrainState):
        super().__init__(message)
        self.step = step  # the first of them
        self.state = state  # before that step, but for its counts


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of a run: the metrics of its steps, and its states."""

    log: MetricsLog
    checkpoints: Checkpoints
    warn: Callable[[Mapping[str, float]], str | None] = lambda metrics: None
    skip_limit: int = 0  # as the step's
    before_save: Callable[[], None] = lambda: None  # raises UserError if nothing may be saved
    warned: set[str | None] = dataclasses.field(default_factory=lambda: {None})

    def settle(
        self,
        step: int,
        metrics: Mapping[str, Any],
        state: Callable[[], TrainState],
        *,
        due: bool,
        say: Callable[[str], None],
        speed: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, float]:
        """Takes a step's metrics, and logs them if that is due, or the step was skipped, or its loss is far off.

        What `warn` then finds wrong is said, once each. Raises NotFinite past the limit of steps skipped in a row, with
        `state`, which no later step has changed.
        """
        values = {name: float(value) for name, value in metrics.items()}
        in_a_row = int(values.pop("skipped_in_a_row", 0))
        if in_a_row > self.skip_limit:
            raise _not_finite(step, in_a_row, values, state(), self.checkpoints.latest_step())
        if in_a_row:
            say(f"step {step} is skipped: {_bad(values)}")
        elif spike := values.get("loss_deviation", 0.0) > _SPIKE:
            say(f"step {step}: the loss is {values['loss_deviation']:.0f} standard deviations above those before it")
        if due or in_a_row or spike:
            self.log.scalars(step, {**values, **speed})
            for warning in (self.warn(values), _slow_input(speed)):
                if warning not in self.warned:
                    self.warned.add(warning)
                    say(f"step {step}: {warning}")
        return values

    def save(self, step: int, state: TrainState) -> None:
        self.before_save()
        self.checkpoints.save(step, state)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written."""
        self.checkpoints.wait()


def run(
    step: Step,
    state: TrainState,
    batches: Iterator,
    *,
    start: int,
    schedule: Schedule,
    images: int,
    record: Record,
    preview: Callable[[int, TrainState], None] = lambda step, state: None,
    preview_first: bool = False,
) -> tuple[TrainState, int | None]:
    """Trains from step `start` to `schedule.steps`; `batches` yields that of step `start` first.

    A step's metrics are read while the next one runs. A state is saved only once `record` has taken its step's metrics.
    On SIGTERM, SIGHUP or Ctrl-C the step in hand is finished and saved; a compilation or a preview in hand is left.

    Args:
      images: a step sees, over all runs.
      record: of one run, or what stands for those of several.
      preview: draws sheets with the state of a step.
      preview_first: begin with those of `start`, as the run ended between its save and them.

    Returns:
      The last state, and the signal that ended the run early or None.

    Raises:
      NotFinite: more steps than `record` allows in a row whose gradient or metrics are not finite.
    """
    pending: tuple[int, Mapping] | None = None
    with StopSignal() as stop, _progress_bar(start, schedule.steps) as bar:
        speed = _Speed()

        def settle() -> None:
            nonlocal pending
            if pending is None:
                return
            (done, metrics), pending = pending, None
            due = _due(done, schedule.log_every) or done == schedule.steps
            metrics = jax.device_get(metrics)
            metrics = record.settle(done, metrics, lambda: state, due=due, say=bar.write, speed=speed.metrics())
            if due:
                speed.restart()
            bar.update(1)
            rate = bar.format_dict["rate"]
            shown = f"{rate * images:.0f} images/s" if rate else ""
            losses = (f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("loss"))
            bar.set_postfix_str(" ".join([*losses, shown]), refresh=False)

        if preview_first:
            stop.attend(_show, preview, start, state, bar.write)
        for done in range(start + 1, schedule.steps + 1):
            with speed.waiting():
                batch = next(batches)
            if done == start + 1:
                compiled = stop.attend(step, state, batch)
                if compiled is None:
                    break
                state, metrics = compiled
            else:
                state, metrics = step(state, batch)
            speed.steps += 1
            settle()
            stop.agree()
            pending = done, metrics
            last = done == schedule.steps
            if last or _due(done, schedule.checkpoint_every):
                settle()
                record.save(done, state)
            if not stop.signal and (last or _due(done, schedule.sample_every)):
                settle()
                stop.attend(_show, preview, done, state, bar.write)
            if stop.signal:
                settle()
                record.save(done, state)  # if it is not yet
                break
        record.wait()  # while signals are noted: the last save is to be whole
    return state, stop.signal


class _Speed:
    """What a step takes, and how much of it is spent waiting for data."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.steps, self._waited, self._since = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self):
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    def metrics(self) -> dict[str, float]:
        """By the names in TIMES."""
        passed = time.monotonic() - self._since
        return {"seconds_per_step": passed / max(self.steps, 1), "data_wait": self._waited / max(passed, 1e-9)}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _show(preview: Callable[[int, TrainState], None], step: int, state: TrainState, say: Callable[[str], None]) -> None:
    try:
        preview(step, state)
    except OSError as error:  # of a full disk, which is to end no run
        say(f"step {step}: no sheet is written ({error.strerror})")


def _slow_input(speed: Mapping[str, float]) -> str | None:
    if speed.get("data_wait", 0.0) > 0.5:
        return "training waits for data more than half of the time (data_wait in metrics.jsonl)"
    return None


def _bad(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value))


def _not_finite(
    step: int, in_a_row: int, metrics: Mapping[str, float], state: TrainState, last_good: int | None
) -> NotFinite:
    kept = (
        "no checkpoint was written yet"
        if last_good is None
        else f"the last good checkpoint is that of step {last_good}"
    )
    before = f", as in the {in_a_row - 1} steps before" if in_a_row > 1 else ""
    return NotFinite(
        f"step {step}: {_bad(metrics)}{before}; {kept}. Try a lower train.learning_rate, more train.warmup_steps, a "
        "smaller train.clip_norm, or dtype='float32'",
        step - in_a_row + 1,
        state,
    )


def _progress_bar(start: int, stop: int) -> tqdm:
    interactive = sys.stderr.isatty()
    often = 0.5 if interactive else 10
    return tqdm(
        disable=not multihost.first(), total=stop, initial=start, unit="step", dynamic_ncols=True, mininterval=often
    )
