"""The record of a run: metrics.jsonl for programs, TensorBoard events for people."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter


class MetricsLog:
    """Appends one JSON object a logged step, at full precision, and the same to TensorBoard.

    A continued run starts at `start`: lines of later steps, written before the run was killed, are dropped, as the
    steps are made again.
    """

    def __init__(self, directory: Path, start: int):
        path = directory / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step(line) <= start]
            path.write_text("".join(line + "\n" for line in lines))
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(directory / "events"), purge_step=start + 1 if start else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """`image` uint8 [H, W, C]."""
        self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._events.close()


class NoLog:
    """That of a process that writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self) -> None: ...


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line the kill cut short
