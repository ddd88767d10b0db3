"""Times two implementations by turns, each in a process of its own, so that a busy machine slows down both."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffjax.errors import UserError, excerpt

_PARENT = str(Path(__file__).parents[2])  # folder of the package


class Timing(NamedTuple):
    """Timing of one side of a comparison.

    Attributes:
      seconds: median over all steps, per unit.
      parameters: number of the network's parameters.
      peak_memory: bytes; of the process on a CPU, after warm-up, libraries included.
      compile_seconds: None: eager.
      hardware: device and number of threads.
      versions: of packages.
    """

    seconds: float
    parameters: int
    peak_memory: int
    compile_seconds: float | None
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]


class Comparison(NamedTuple):
    """Both sides, and the peer's seconds divided by ours in each turn; above 1: ours is faster."""

    ours: Timing
    peer: Timing
    ratios: tuple[float, ...]


def compare(ours: Mapping[str, Any], peer: Mapping[str, Any], *, turns: int, steps: int) -> Comparison:
    """Times two workloads by turns; the side that is first alternates.

    Args:
      ours: request of the worker, with "side" "jax".
      peer: request of the worker, with another "side".
      turns: number of turns.
      steps: timed steps per turn and side.

    Raises:
      UserError: a worker failed.
    """
    with Worker(ours) as first, Worker(peer) as second:
        sides, seconds = (first, second), ([], [])
        for turn in range(turns):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                seconds[side].append(sides[side].time(steps))
        timings = [worker.finish(times) for worker, times in zip(sides, seconds, strict=True)]
        ratios = [
            statistics.median(b) / second.units / (statistics.median(a) / first.units)
            for a, b in zip(*seconds, strict=True)
        ]
    return Comparison(timings[0], timings[1], tuple(ratios))


class Worker:
    """A process that computes a workload, see `worker`. A context manager, which ends the process."""

    def __init__(self, request: Mapping[str, Any]):
        self._name = f"{request['case']} of {request['side']}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        path = os.pathsep.join([_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "diffjax.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            self._description = self._ask(json.dumps(request))
        except BaseException:
            self.__exit__()
            raise

    @property
    def units(self) -> int:
        """Units of the reported seconds per step."""
        return self._description["units"]

    def time(self, steps: int) -> list[float]:
        """Returns the seconds of each of some steps."""
        return self._ask(str(steps))["seconds"]

    def finish(self, seconds: list[list[float]]) -> Timing:
        """Ends the workload, and returns its timing from the seconds of all turns."""
        d, peak = self._description, self._ask("")["peak_memory"]
        median = statistics.median(second for turn in seconds for second in turn) / self.units
        return Timing(median, d["parameters"], peak, d["compile_seconds"], d["hardware"], d["versions"])

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()

    def _ask(self, line: str) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the log has the reason
            stdin.write(line + "\n")
            stdin.flush()
        answer = stdout.readline()
        if not answer:
            self._process.wait()
            self._log.seek(0)
            last = (self._log.read().strip().splitlines() or ["no message"])[-1]
            raise UserError(f"--cases={self._name}: the process ended with code {self._process.returncode}: {last}")
        values = json.loads(answer)
        if "error" in values:
            raise UserError(f"--cases={self._name}: failed with {excerpt(values['error'], 400)}")
        return values
