"""Logs of a run: metrics.jsonl for programs, and TensorBoard events."""

import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from diffjax import io

_MIN_FREE_SPACE = 2**24  # bytes; with less no event is written, as a full disk ends the writer's thread, then blocks


class MetricsLog:
    """Appends one JSON object per logged step, at full precision (null: not finite), and logs to TensorBoard.

    Lines that a full disk rejects are written later, once there is space.
    """

    def __init__(self, directory: Path, start: int):
        """Opens the log of a run that starts or resumes at step `start`.

        Lines of later steps are dropped, as these steps are repeated. Damaged lines are dropped too, and counted on
        standard error: a damaged log does not prevent a run from resuming.
        """
        self._directory = directory
        path = directory / "metrics.jsonl"
        if path.exists():
            lines = list(_lines(path))
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
        self._events_disabled = False
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        self._events = SummaryWriter(str(directory / "events"), purge_step=start + 1 if start else None)

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
            for name, value in values.items():
                if finite[name] is not None:
                    self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs an image, uint8 [H, W, C]."""
        if self._has_space():
            self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes the remaining lines. Raises OSError if they cannot be written."""
        try:
            self._write()
        finally:
            self._file.close()
            self._events.close()

    def _write(self) -> None:
        while self._unwritten:
            written = os.write(self._file.fileno(), self._unwritten)  # a full disk may accept a part of the line
            self._unwritten = self._unwritten[written:]

    def _has_space(self) -> bool:
        space = shutil.disk_usage(self._directory).free > _MIN_FREE_SPACE
        if not space and not self._events_disabled:
            print(f"{self._directory}/events: the disk is full, so TensorBoard events are omitted", file=sys.stderr)
        self._events_disabled = not space
        return space


class NullLog:
    """A log that discards everything, for processes other than the main one."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self) -> None: ...


def last_logged_step(path: Path) -> int:
    """Returns the largest step in the valid lines of a metrics.jsonl, 0 without any."""
    return max((step for _, step in _lines(path) if step is not None), default=0) if path.exists() else 0


def last_logged(path: Path) -> dict[str, Any]:
    """Returns the values of the last valid line of a metrics.jsonl, {} without any."""
    lines = [line for line, step in _lines(path) if step is not None] if path.exists() else []
    return io.from_json(lines[-1]) if lines else {}


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
