"""The loop around the step: what is saved, shown and stopped, and when."""

import contextlib
import dataclasses
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping

import jax
from tqdm import tqdm

from diffjax.errors import UserError
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
    """Trains from step `start` to `schedule.steps`; `batches` yields that of step `start` first.

    A step's metrics are read while the next one runs. A checkpoint is written only of a step whose loss and gradient
    are known to be finite. What `warn` finds wrong with a logged step is printed, once each. On SIGTERM or Ctrl-C the
    step in hand is finished and saved.

    Returns:
      The last state, and the signal that ended the run early or None.

    Raises:
      UserError: a loss or gradient that is not finite; the last good checkpoint is kept.
    """
    pending: tuple[int, Mapping] | None = None
    warned: set[str | None] = {None}
    with _StopSignal() as stop, _progress_bar(start, schedule.steps) as bar:

        def settle() -> None:
            nonlocal pending
            if pending is None:
                return
            (done, metrics), pending = pending, None
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not all(map(math.isfinite, metrics.values())):
                raise _not_finite(done, metrics, checkpoints.latest_step())
            if _due(done, schedule.log_every) or done == schedule.steps:
                log.scalars(done, metrics)
                if (warning := warn(metrics)) not in warned:
                    warned.add(warning)
                    bar.write(f"step {done}: {warning}")
            bar.update(1)
            rate = bar.format_dict["rate"]
            images = f"{rate * batch_size:.0f} images/s" if rate else ""
            losses = (f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("loss"))
            bar.set_postfix_str(" ".join([*losses, images]), refresh=False)

        for done in range(start + 1, schedule.steps + 1):
            state, metrics = step(state, next(batches))
            settle()
            pending = done, metrics
            last = done == schedule.steps or stop.signal is not None
            if last or _due(done, schedule.checkpoint_every):
                settle()
                checkpoints.save(done, state)
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
    return tqdm(total=stop, initial=start, unit="step", dynamic_ncols=True, mininterval=0.5 if interactive else 10)


class _StopSignal(contextlib.AbstractContextManager):
    """Notes the first SIGTERM or SIGINT and lets the loop end by itself; a second one acts as ever."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self):
        self._former = {s: signal.signal(s, self._note) for s in self._SIGNALS}
        return self

    def _note(self, number, frame):
        self.signal = number
        self._restore()

    def _restore(self):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        self._restore()
