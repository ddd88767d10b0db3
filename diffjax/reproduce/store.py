"""Files of an experiment's runs and cells.

Layout of a workdir, which several experiments may share: runs/TRAINING is an ordinary run, whose parts are links to
other runs; cells/CELL.json has the estimates and provenance of a cell, or its error; cells/CELL.npz its first samples.
Files are written atomically.
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
from diffjax.runs.workdir import Workdir

MAX_IMAGES = 100  # stored samples per cell


class Store:
    """Reads and writes the files of an experiment's runs and cells."""

    def __init__(self, root: Path):
        self.root = root

    def run(self, training: str) -> Workdir:
        """Returns the folder of a training."""
        return Workdir(self.root / "runs" / training)

    @contextlib.contextmanager
    def lock(self, training: str) -> Iterator[None]:
        """Locks a run while it is trained: a second job that needs it waits, and then finds it trained."""
        folder = self.root / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{training}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def has_part(self, training: str, name: str) -> bool:
        """Returns whether the folder of a run has its part `name`."""
        return (self.run(training).path / name).exists()

    def link_part(self, training: str, name: str, part: str) -> None:
        """Links the run `part` into the folder of another run, as its part `name`."""
        folder = self.run(training).path
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another job was faster
            (folder / name).symlink_to(os.path.join(os.pardir, part))

    def result(self, cell: str) -> dict[str, Any] | None:
        """Returns the stored result of a cell, None if it is pending. Deletes a damaged file."""
        path = self.root / "cells" / f"{cell}.json"
        try:
            result = io.read_json(path, "the cell is measured again")
            if not _is_result(result):
                raise UserError(f"{path} is not a result of a cell: the cell is measured again")
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
            print(f"{path} is damaged ({error}): the report omits the cell's samples", file=sys.stderr)
            return None
        return images if images.dtype == np.uint8 and images.ndim == 4 else None

    def save(self, cell: str, result: Mapping[str, Any], images: np.ndarray | None = None) -> None:
        """Writes the samples and then the result of a cell: a cell with a result is complete.

        Args:
          cell: key of the cell.
          result: "estimates" and "provenance", or "error".
          images: samples, uint8 [N, H, W, C]; the first MAX_IMAGES are stored.
        """
        folder = self.root / "cells"
        folder.mkdir(parents=True, exist_ok=True)
        if images is not None:
            with io.atomic_path(folder / f"{cell}.npz") as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, images=images[:MAX_IMAGES])
        io.write_json(folder / f"{cell}.json", result)

    def delete(self, cell: str) -> None:
        """Deletes the result of a cell, which becomes pending."""
        (self.root / "cells" / f"{cell}.json").unlink(missing_ok=True)


def _is_result(value: Any) -> bool:
    """Returns whether a JSON value has the types of a cell's result."""
    if not isinstance(value, dict) or not isinstance(value.get("error", ""), str):
        return False
    estimates, provenance = value.get("estimates", {}), value.get("provenance", {})
    return (
        ("error" in value or "estimates" in value)
        and isinstance(provenance, dict)
        and isinstance(estimates, dict)
        and all(
            isinstance(estimate, dict) and set(map(type, estimate.values())) <= {int, float, type(None)}
            for estimate in estimates.values()
        )
    )
