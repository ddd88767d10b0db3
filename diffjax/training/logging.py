"""The record of a run: metrics.jsonl for programs, TensorBoard events for people."""

import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from diffjax import io

_SPACE = 2**24  # bytes free below which no event is written: a full disk ends the writer's thread, and then blocks


class MetricsLog:
    """Appends one JSON object a logged step, at full precision (null: not finite), and the same to TensorBoard.

    A resumed run starts at `start`: lines of later steps, written before the run was killed, are dropped, as the
    steps are made again. So are damaged lines, which a line on standard error counts: the checkpoints decide how a run
    continues, and a damaged record does not keep it from that. What a full disk does not take is written once there is
    room.
    """

    def __init__(self, directory: Path, start: int):
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
            kept = [line for line, step in lines if step is not None and step <= start]
            with io.atomic_path(path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        elif start:
            print(f"{path}: is missing, so the record starts again at step {start}", file=sys.stderr)
        self._without_events = False
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        self._events = SummaryWriter(str(directory / "events"), purge_step=start + 1 if start else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._unwritten += (io.to_json({"step": step, **known}) + "\n").encode()
        try:
            self._write()
        except OSError as error:
            print(
                f"step {step}: metrics.jsonl cannot be written ({error.strerror}); tried again later", file=sys.stderr
            )
        if self._has_space():
            for name, value in values.items():
                if known[name] is not None:
                    self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """`image` uint8 [H, W, C]."""
        if self._has_space():
            self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Raises OSError where lines are left that cannot be written."""
        try:
            self._write()
        finally:
            self._file.close()
            self._events.close()

    def _write(self) -> None:
        while self._unwritten:
            written = os.write(self._file.fileno(), self._unwritten)  # a full disk may take a part
            self._unwritten = self._unwritten[written:]

    def _has_space(self) -> bool:
        space = shutil.disk_usage(self._directory).free > _SPACE
        if not space and not self._without_events:
            print(f"{self._directory}/events: no room for TensorBoard's events, which are left out", file=sys.stderr)
        self._without_events = not space
        return space


class NoLog:
    """That of a process that writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self) -> None: ...


def last_logged_step(path: Path) -> int:
    """Returns the last step of the whole lines of a metrics.jsonl, 0 where there are none."""
    return max((step for _, step in _lines(path) if step is not None), default=0) if path.exists() else 0


def _lines(path: Path) -> Iterator[tuple[bytes, int | None]]:
    """The lines of a metrics.jsonl with their steps; None: a damaged line. A last line that a kill cut is left out."""
    *whole, cut = path.read_bytes().split(b"\n")
    for line in whole if not cut or _step(cut) is None else [*whole, cut]:
        yield line, _step(line)


def _step(line: bytes) -> int | None:
    try:
        step = io.from_json(line)["step"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return step if type(step) is int and step >= 0 else None
