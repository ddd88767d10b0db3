"""The log of a run: metrics.jsonl for programs, and a logger for people."""

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from diffjax import io
from diffjax.training.loggers import Logger, NullLogger

# Bytes; with less nothing is passed to the logger, as a full disk ends the thread that writes TensorBoard events, which
# then blocks.
_MIN_FREE_SPACE = 2**24


class MetricsLog(contextlib.AbstractContextManager):
    """Appends one JSON object per logged step to metrics.jsonl, at full precision (null: not finite).

    Passes finite metrics and images to a logger too. Lines that a full disk rejects are written later, once there is
    space.
    """

    def __init__(self, directory: Path, start: int, open_logger: Callable[[int], Logger] = lambda last: NullLogger()):
        """Opens the log of a run that starts or resumes at step `start`.

        Lines of later steps are dropped, as these steps are repeated. Damaged lines are dropped too, and counted on
        standard error: a damaged log does not prevent a run from resuming.

        Args:
          open_logger: opens the logger, with the last step that was logged before.
        """
        self._directory = directory
        path = directory / "metrics.jsonl"
        lines = list(_lines(path)) if path.exists() else []
        last = max((step for _, step in lines if step is not None), default=0)
        logger = open_logger(last)  # before any change, as it can fail
        if path.exists():
            if damaged := [number for number, (_, step) in enumerate(lines, 1) if step is None]:
                print(
                    f"{path}: {len(damaged)} damaged line{'s' * (len(damaged) > 1)} dropped, the first is line "
                    f"{damaged[0]}",
                    file=sys.stderr,
                )
            valid = [line for line, step in lines if step is not None and step <= start]
            with io.atomic_path(path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in valid))
        elif start:
            print(f"{path}: is missing; a new file starts at step {start}", file=sys.stderr)
        self._logger, self._logger_paused = logger, False
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of a step."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._unwritten += (io.to_json({"step": step, **finite}) + "\n").encode()
        try:
            self._write()
        except OSError as error:
            print(
                f"step {step}: metrics.jsonl cannot be written ({error.strerror}); trying again later", file=sys.stderr
            )
        if self._has_space():
            self._logger.scalars(step, {name: value for name, value in finite.items() if value is not None})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs an image, uint8 [H, W, C]."""
        if self._has_space():
            self._logger.image(step, name, image)

    def close(self, *, failed: bool = False) -> None:
        """Writes the remaining lines. Raises OSError if they cannot be written.

        Args:
          failed: whether an error ended the run.
        """
        try:
            self._write()
        finally:
            self._file.close()
            self._logger.close(failed=failed)

    def __exit__(self, error_type, error, trace) -> None:
        self.close(failed=error_type is not None)

    def _write(self) -> None:
        while self._unwritten:
            written = os.write(self._file.fileno(), self._unwritten)  # a full disk may accept a part of the line
            self._unwritten = self._unwritten[written:]

    def _has_space(self) -> bool:
        space = shutil.disk_usage(self._directory).free > _MIN_FREE_SPACE
        if not space and not self._logger_paused:
            print(f"{self._directory}: the disk is full, so only metrics.jsonl is written (--logger)", file=sys.stderr)
        self._logger_paused = not space
        return space


class NullLog(contextlib.AbstractContextManager):
    """A log that discards everything, for processes other than the main one."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def __exit__(self, error_type, error, trace) -> None: ...


def _lines(path: Path) -> Iterator[tuple[bytes, int | None]]:
    """Yields the lines of a metrics.jsonl with their steps, None for damaged lines. Omits an incomplete last line."""
    *whole, last = path.read_bytes().split(b"\n")
    for line in whole if not last or _step(last) is None else [*whole, last]:
        yield line, _step(line)


def _step(line: bytes) -> int | None:
    try:
        step = io.from_json(line)["step"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return step if type(step) is int and step >= 0 else None
