"""Profile of training steps: a trace for XProf, and a table of the operations that took most of the time."""

import collections
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffjax.cluster import multihost
from diffjax.runs.state import TrainState
from diffjax.training.step import Metrics
from diffjax.typing import Batch, Variables

_WARMUP = 3  # steps before the profile, of which the first compiles
_ROWS = 15
_INSTRUCTION = re.compile(r'\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"')


class Operation(NamedTuple):
    """Time of an operation of the program, by its place in the model.

    Attributes:
      name: modules and primitive, such as UNet/down_0_block_0/conv_0/conv_general_dilated (backward).
      seconds: time on the device, without the operations inside of it.
    """

    name: str
    seconds: float


class Profiler:
    """A training step that profiles some of its calls.

    After the profile it prints the path of the trace and a table, and calls the step as it is.
    """

    def __init__(self, step: Any, steps: int, folder: Path):
        """Wraps a step.

        Args:
          step: (state, batch, frozen) -> (state, metrics), compiled at its first call.
          steps: number of steps to profile.
          folder: folder of the trace; an older one is replaced.
        """
        self._step, self._steps, self._folder = step, steps, folder
        self._calls, self._is_tracing = 0, False

    def __call__(self, state: TrainState, batch: Batch, frozen: Variables) -> tuple[TrainState, Metrics]:
        self._calls += 1
        if self._calls == _WARMUP + 1:
            jax.block_until_ready(state)
            if multihost.is_main_process():
                shutil.rmtree(self._folder, ignore_errors=True)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # it slows the steps down
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._is_tracing = True
        shapes = jax.tree.map(_shape, (state, batch, frozen)) if self._is_last() else None
        with jax.profiler.StepTraceAnnotation("train", step_num=self._calls):
            result = self._step(state, batch, frozen)
        if shapes is not None:
            jax.block_until_ready(result)
            self._stop()
            if multihost.is_main_process():
                self._report(_hlo(self._step, shapes))
        return result

    def close(self) -> None:
        """Ends a trace that is not complete, as the run has fewer steps."""
        if self._is_tracing:
            self._stop()
        if self._calls < _WARMUP + self._steps:
            print(f"--profile={self._steps}: the run ended before {_WARMUP + self._steps} steps; there is no table")

    def _is_last(self) -> bool:
        return self._is_tracing and self._calls == _WARMUP + self._steps

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._is_tracing = False

    def _report(self, hlo: str) -> None:
        operations = read_operations(self._folder, hlo)
        print(f"profile of {self._steps} steps: {self._folder}; open it with xprof --logdir={self._folder}")
        total = sum(operation.seconds for operation in operations)
        for name, seconds in operations[:_ROWS]:
            print(f"{seconds / total:6.1%} {1e3 * seconds / self._steps:9.2f} ms per step  {name}")


def read_operations(folder: Path, hlo: str) -> list[Operation]:
    """Reads the operations of a trace, the longest first; those at one place in the model are one.

    Args:
      folder: folder of `jax.profiler.start_trace`.
      hlo: text of the compiled program, with the places of its instructions; others keep the name of the instruction.
    """
    places = {match[1]: _place(match[2]) for match in map(_INSTRUCTION.match, hlo.splitlines()) if match}
    seconds: dict[str, float] = collections.defaultdict(float)
    for path in folder.glob("plugins/profile/*/*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in _lines(plane):
                for instruction, duration in _self_times(line):
                    seconds[places.get(instruction, instruction)] += duration
    return [Operation(*item) for item in sorted(seconds.items(), key=lambda item: -item[1])]


def _lines(plane: Any) -> list[Any]:
    """Returns the lines of a plane with operations: the line of that name on a device, all threads of a CPU."""
    lines = list(plane.lines)
    named = [line for line in lines if line.name == "XLA Ops"]
    return named or lines


def _self_times(line: Any) -> Iterator[tuple[str, float]]:
    """Yields the instruction and the time of each event in seconds, without the time of the events inside of it."""
    events = []
    for event in line.events:
        instruction = dict(event.stats).get("hlo_op")
        if instruction and not event.name.startswith("end: "):
            events.append((event.start_ns, -event.duration_ns, str(instruction)))
    open_events: list[list[Any]] = []  # end, instruction, remaining time
    for start, negative_duration, instruction in sorted(events):
        while open_events and open_events[-1][0] <= start:
            yield _close(open_events)
        if open_events:
            open_events[-1][2] += negative_duration
        open_events.append([start - negative_duration, instruction, -negative_duration])
    while open_events:
        yield _close(open_events)


def _close(open_events: list[list[Any]]) -> tuple[str, float]:
    _, instruction, remaining = open_events.pop()
    return instruction, max(remaining, 0.0) / 1e9


def _place(op_name: str) -> str:
    """Returns the place of an instruction: modules and primitive, without the transformations that jax writes."""
    is_backward = "transpose(" in op_name
    parts = [re.sub(r"^(?:\w+\()+|\)+$", "", part) for part in op_name.split("/") if not part.startswith("jit(")]
    return "/".join(filter(None, parts)) + " (backward)" * is_backward


def _hlo(step: Any, shapes: tuple[Any, ...]) -> str:
    """Returns the text of the compiled step, or "" for a step that is not one program of this process."""
    lower: Callable | None = getattr(step, "lower", None)
    return lower(*shapes).compile().as_text() or "" if lower else ""


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
