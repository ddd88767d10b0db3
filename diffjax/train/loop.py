"""The loop around the step: what is saved, shown and stopped, and when."""

import contextlib
import dataclasses
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from tqdm import tqdm

from diffjax.errors import UserError
from diffjax.train import hosts
from diffjax.train.checkpoints import Checkpoints
from diffjax.train.metrics import MetricsLog
from diffjax.train.state import TrainState
from diffjax.train.step import Step


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long to train, and after how many steps each thing is done (0: never)."""

    steps: int
    log_every: int
    sample_every: int
    checkpoint_every: int


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of a run: the metrics of its steps, and its states."""

    log: MetricsLog
    checkpoints: Checkpoints
    warn: Callable[[Mapping[str, float]], str | None] = lambda metrics: None
    warned: set[str | None] = dataclasses.field(default_factory=lambda: {None})

    def settle(
        self, step: int, metrics: Mapping[str, Any], *, due: bool, say: Callable[[str], None]
    ) -> dict[str, float]:
        """Takes a step's metrics, and logs them if that is due; what `warn` then finds wrong is said, once each.

        Raises UserError for a loss or gradient that is not finite.
        """
        values = {name: float(value) for name, value in metrics.items()}
        if not all(map(math.isfinite, values.values())):
            raise _not_finite(step, values, self.checkpoints.latest_step())
        if due:
            self.log.scalars(step, values)
            if (warning := self.warn(values)) not in self.warned:
                self.warned.add(warning)
                say(f"step {step}: {warning}")
        return values

    def save(self, step: int, state: TrainState) -> None:
        self.checkpoints.save(step, state)


def run(
    step: Step,
    state: TrainState,
    batches: Iterator,
    *,
    start: int,
    schedule: Schedule,
    batch_size: int,
    log: MetricsLog,
    checkpoints: Checkpoints,
    preview: Callable[[int, TrainState], None],
    warn: Callable[[Mapping[str, float]], str | None] = lambda metrics: None,
) -> tuple[TrainState, int | None]:
    """`drive` for one run: what `warn` finds wrong with a logged step is printed, once each.

    Raises UserError for a loss or gradient that is not finite; the last good checkpoint is kept.
    """
    record = Record(log, checkpoints, warn)
    return drive(
        step, state, batches, start=start, schedule=schedule, images=batch_size, record=record, preview=preview
    )


def drive(
    step: Step,
    state: TrainState,
    batches: Iterator,
    *,
    start: int,
    schedule: Schedule,
    images: int,
    record: Record,
    preview: Callable[[int, TrainState], None] = lambda step, state: None,
) -> tuple[TrainState, int | None]:
    """Trains from step `start` to `schedule.steps`; `batches` yields that of step `start` first.

    A step's metrics are read while the next one runs. A state is saved only once `record` has taken its step's metrics.
    On SIGTERM or Ctrl-C the step in hand is finished and saved.

    Args:
      images: a step sees, over all runs.
      record: of one run, or what stands for those of several.

    Returns:
      The last state, and the signal that ended the run early or None.
    """
    pending: tuple[int, Mapping] | None = None
    with _StopSignal() as stop, _progress_bar(start, schedule.steps) as bar:

        def settle() -> None:
            nonlocal pending
            if pending is None:
                return
            (done, metrics), pending = pending, None
            due = _due(done, schedule.log_every) or done == schedule.steps
            metrics = record.settle(done, jax.device_get(metrics), due=due, say=bar.write)
            bar.update(1)
            rate = bar.format_dict["rate"]
            speed = f"{rate * images:.0f} images/s" if rate else ""
            losses = (f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("loss"))
            bar.set_postfix_str(" ".join([*losses, speed]), refresh=False)

        for done in range(start + 1, schedule.steps + 1):
            state, metrics = step(state, next(batches))
            settle()
            stop.agree()
            pending = done, metrics
            last = done == schedule.steps or stop.signal is not None
            if last or _due(done, schedule.checkpoint_every):
                settle()
                record.save(done, state)
            if not stop.signal and (last or _due(done, schedule.sample_every)):
                settle()
                preview(done, state)
            if last:
                break
    return state, stop.signal


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _not_finite(step: int, metrics: Mapping[str, float], last_good: int | None) -> UserError:
    found = ", ".join(f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value))
    kept = (
        "no checkpoint was written yet"
        if last_good is None
        else f"the last good checkpoint is that of step {last_good}"
    )
    return UserError(
        f"step {step}: {found}; {kept}. Try a lower train.learning_rate, more train.warmup_steps, a smaller "
        "train.clip_norm, or dtype='float32'"
    )


def _progress_bar(start: int, stop: int) -> tqdm:
    interactive = sys.stderr.isatty()
    often = 0.5 if interactive else 10
    return tqdm(
        disable=not hosts.first(), total=stop, initial=start, unit="step", dynamic_ncols=True, mininterval=often
    )


class _StopSignal(contextlib.AbstractContextManager):
    """Notes the first SIGTERM or SIGINT and lets the loop end by itself; a second one acts as ever.

    Where there are several processes, `signal` is what they have agreed on: each says at every step what came to it,
    and hears at the next, together with all, what came to any.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self._own: int | None = None
        self._agreed: int | None = None
        self._heard = None
        self._ask = None if hosts.alone() else hosts.make_agreement()

    @property
    def signal(self) -> int | None:
        return self._agreed if self._ask else self._own

    def agree(self) -> None:
        if self._ask:
            self._agreed = int(self._heard) or None if self._heard is not None else None
            self._heard = self._ask(self._own or 0)

    def __enter__(self):
        self._former = {s: signal.signal(s, self._note) for s in self._SIGNALS}
        return self

    def _note(self, number, frame):
        self._own = number
        self._restore()

    def _restore(self):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        self._restore()
