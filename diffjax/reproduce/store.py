"""Where an experiment's runs and cells lie.

Layout of a workdir, which several experiments may share: runs/TRAINING is an ordinary run, its parts links to others;
cells/CELL.json has a cell's figures with all they depend on, or the error it ended with; cells/CELL.npz its first
samples. Files are whole or absent.
"""

import contextlib
import fcntl
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffjax import io
from diffjax.errors import UserError
from diffjax.reproduce.plan import Cell
from diffjax.runs.workdir import Workdir

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
        """Returns what is known of a cell, None if it is not done; a damaged file is deleted, to be measured again."""
        path = self.root / "cells" / f"{cell}.json"
        try:
            result = io.read_json(path, "the cell is measured again")
            if not _is_result(result):
                raise UserError(f"{path} does not hold a cell's result: the cell is measured again")
            return result
        except FileNotFoundError:
            return None
        except UserError as error:
            print(error, file=sys.stderr)
            path.unlink(missing_ok=True)
            return None

    def images(self, cell: str) -> np.ndarray | None:
        """Returns the cell's first samples, uint8 [N, H, W, C]; None if it has none or their file is damaged."""
        path = self.root / "cells" / f"{cell}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                images = stored["images"]
        except FileNotFoundError:
            return None
        except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            print(f"{path} is damaged ({error}): the cell's samples are not shown", file=sys.stderr)
            return None
        return images if images.dtype == np.uint8 and images.ndim == 4 else None

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


def _is_result(found: Any) -> bool:
    """Whether a value of JSON has the types of a cell's result."""
    if not isinstance(found, dict) or not isinstance(found.get("error", ""), str):
        return False
    figures, known = found.get("figures", {}), found.get("provenance", {})
    return (
        ("error" in found or "figures" in found)
        and isinstance(known, dict)
        and isinstance(figures, dict)
        and all(
            isinstance(figure, dict) and set(map(type, figure.values())) <= {int, float, type(None)}
            for figure in figures.values()
        )
    )
