"""Time grids that were optimised for a run, in its file grids.json."""

from collections.abc import Sequence
from typing import Any

from diffjax import io
from diffjax.models.diffusion.diffusion_settings import OptimizedGrids
from diffjax.runs.workdir import Workdir

_ADVICE = "delete it, and run launch.py optimize_grid again"


def read(workdir: Workdir) -> OptimizedGrids:
    """Reads the grids of a run; (): it has none.

    Raises:
      UserError: the file is damaged.
    """
    if not workdir.grids.exists():
        return ()
    stored: list[dict[str, Any]] = io.read_json(workdir.grids, _ADVICE)
    return tuple((entry["sampler"], int(entry["steps"]), tuple(entry["times"])) for entry in stored)


def write(workdir: Workdir, entries: Sequence[dict[str, Any]]) -> None:
    """Adds grids to those of a run: dicts with "sampler", "steps", "times" and what else is known of them.

    Those of the same sampler and number of steps are replaced.
    """
    new = {(entry["sampler"], entry["steps"]): entry for entry in entries}
    stored = io.read_json(workdir.grids, _ADVICE) if workdir.grids.exists() else []
    others = [entry for entry in stored if (entry["sampler"], entry["steps"]) not in new]
    workdir.grids.parent.mkdir(parents=True, exist_ok=True)
    io.write_json(workdir.grids, [*others, *new.values()])
