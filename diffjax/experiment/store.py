"""Where an experiment's runs and cells lie.

Layout of a workdir, which several experiments may share: runs/TRAINING is an ordinary run, its parts links to others;
cells/CELL.json has a cell's figures with all they depend on, or the error it ended with; cells/CELL.npz its first
samples. Files are whole or absent.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffjax import io
from diffjax.experiment.plan import Cell
from diffjax.workdir import Workdir

KEPT = 100  # samples of a cell that are kept as they are


class Store:
    """Where an experiment's runs and cells lie."""

    def __init__(self, root: Path):
        self.root = root

    def run(self, training: str) -> Workdir:
        return Workdir(self.root / "runs" / training)

    @contextlib.contextmanager
    def lock(self, training: str) -> Iterator[None]:
        """Held while a run is trained: of two jobs that need it the second one waits and finds it done."""
        folder = self.root / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{training}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def has_part(self, training: str, name: str) -> bool:
        """Whether a run has a part where it looks for it."""
        return (self.run(training).path / name).exists()

    def link_part(self, training: str, name: str, part: str) -> None:
        """Lays the run `part` where another one looks for its part `name`."""
        home = self.run(training).path
        home.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another job was quicker
            (home / name).symlink_to(os.path.join(os.pardir, part))

    def result(self, cell: str) -> dict[str, Any] | None:
        """What is known of a cell, if it is done."""
        path = self.root / "cells" / f"{cell}.json"
        return io.read_json(path, "delete it to measure the cell again") if path.exists() else None

    def images(self, cell: str) -> np.ndarray | None:
        """The cell's first samples, uint8 [N, H, W, C], if it has any."""
        path = self.root / "cells" / f"{cell}.npz"
        if not path.exists():
            return None
        with np.load(path) as stored:
            return stored["images"]

    def keep(self, cell: str, result: Mapping[str, Any], images: np.ndarray | None = None) -> None:
        """The result comes last: a cell that has one is whole."""
        folder = self.root / "cells"
        folder.mkdir(parents=True, exist_ok=True)
        if images is not None:
            with io.atomic_path(folder / f"{cell}.npz") as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, images=images[:KEPT])
        io.write_json(folder / f"{cell}.json", result)

    def forget(self, cell: Cell) -> None:
        """As if the cell had not been tried."""
        (self.root / "cells" / f"{cell.key}.json").unlink(missing_ok=True)
        self.run(cell.training).error.unlink(missing_ok=True)
