"""The record of a run: metrics.jsonl for programs, TensorBoard events for people."""

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from diffjax import io

_SPACE = 2**24  # bytes free below which no event is written: a full disk ends the writer's thread, and then blocks


class MetricsLog:
    """Appends one JSON object a logged step, at full precision (null: not finite), and the same to TensorBoard.

    A continued run starts at `start`: lines of later steps, written before the run was killed, are dropped, as the
    steps are made again. What a full disk does not take is written once there is room.
    """

    def __init__(self, directory: Path, start: int):
        self._directory = directory
        path = directory / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step(line) <= start]
            io.write_text(path, "".join(line + "\n" for line in lines))
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        self._events = SummaryWriter(str(directory / "events"), purge_step=start + 1 if start else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._unwritten += (json.dumps({"step": step, **known}) + "\n").encode()
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
        return shutil.disk_usage(self._directory).free > _SPACE


class NoLog:
    """That of a process that writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self) -> None: ...


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line the kill cut short
