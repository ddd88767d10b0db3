"""Averages of the weights on disk: those stored in training, and those of other lengths reconstructed from them.

Training stores power-function averages at intervals (power_functions.py), each with its step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffjax.errors import UserError
from diffjax.runs import exported_weights
from diffjax.runs.power_functions import check_length, name_of, solve
from diffjax.runs.workdir import Workdir
from diffjax.typing import Variables


def list_snapshots(workdir: Workdir) -> list[int]:
    """Returns the steps at which averages are stored, in ascending order."""
    names = [path.stem for path in workdir.averages.glob("*.safetensors")]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def save_snapshot(workdir: Workdir, step: int, averages: Mapping[str, Any], collections: Mapping[str, Any]) -> None:
    """Stores the averages of a step by name of their length, and the other state of the model, such as a codebook.

    Raises:
      OSError: the file cannot be written.
    """
    workdir.averages.mkdir(exist_ok=True)
    exported_weights.save(_snapshot(workdir, step), {"averages": averages, "collections": collections}, step)


def delete_after(workdir: Workdir, step: int) -> None:
    """Deletes the averages of later steps, and all that were reconstructed from them."""
    for later in list_snapshots(workdir):
        if later > step:
            _snapshot(workdir, later).unlink(missing_ok=True)
            for path in workdir.averages.glob(f"length_*_{later:08d}.safetensors"):
                path.unlink(missing_ok=True)


def load_average(
    workdir: Workdir, template: Variables, lengths: Sequence[float], length: float, step: int | None = None
) -> tuple[Variables, int]:
    """Returns the variables of a run with parameters averaged over another length, stored or reconstructed.

    Args:
      template: shapes of the variables.
      lengths: relative lengths of the stored averages.
      length: relative length of the average.
      step: last step of the average, one of `list_snapshots`; None: the newest.

    Returns:
      The variables and the step.

    Raises:
      UserError: no averages are stored at the step, or a file is damaged.
    """
    chosen = _check_step(workdir, check_length("--ema_length", length), step)
    file = _reconstruction(workdir, length, chosen)
    variables = exported_weights.load(file, template) if file.exists() else None
    return variables or reconstruct(workdir, template, lengths, length, chosen)[0], chosen


def reconstruct(
    workdir: Workdir, template: Variables, lengths: Sequence[float], length: float, step: int | None = None
) -> tuple[Variables, int, float]:
    """Reconstructs an average from those stored up to a step; arguments and errors as of `load_average`.

    Returns:
      The variables, the step, and the relative error of the averaging profile.
    """
    chosen = _check_step(workdir, length, step)
    steps = [t for t in list_snapshots(workdir) if t <= chosen]
    pairs = [(t, stored) for t in steps for stored in lengths]
    x, error = solve([t for t, _ in pairs], [stored for _, stored in pairs], chosen, length)
    weights = dict(zip(pairs, x, strict=True))
    collections = {name: tree for name, tree in template.items() if name != "params"}
    shapes = {"averages": {name_of(stored): template["params"] for stored in lengths}, "collections": collections}
    total: Any = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), template["params"])
    snapshot: Any = None
    for t in steps:
        snapshot = exported_weights.load(_snapshot(workdir, t), shapes)
        for stored in lengths:
            weight, average = weights[t, stored], snapshot["averages"][name_of(stored)]
            total = jax.tree.map(lambda sum, leaf, weight=weight: sum + weight * leaf, total, average)
    params = jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), total, template["params"])
    return {**snapshot["collections"], "params": params}, chosen, error


def save_reconstruction(workdir: Workdir, variables: Variables, length: float, step: int) -> Path:
    """Stores the variables of `reconstruct`, for `load_average`. Returns the file."""
    path = _reconstruction(workdir, length, step)
    exported_weights.save(path, variables, step)
    return path


def _check_step(workdir: Workdir, length: float, step: int | None) -> int:
    steps = list_snapshots(workdir)
    if workdir.weights.exists():
        raise UserError(f"{workdir.name}: is exported, with one average only; name the run for length {length:g}")
    if not steps:
        raise UserError(
            f"{workdir.name}: has no averages to reconstruct length {length:g} from; train with "
            "--config.train.ema_lengths=0.05,0.1 and --config.train.ema_every=N"
        )
    if step is not None and step not in steps:
        raise UserError(
            f"--checkpoint={step}: {workdir.name} has none of this step; choose from {', '.join(map(str, steps))}"
        )
    return steps[-1] if step is None else step


def _snapshot(workdir: Workdir, step: int) -> Path:
    return workdir.averages / f"{step:08d}.safetensors"


def _reconstruction(workdir: Workdir, length: float, step: int) -> Path:
    return workdir.averages / f"length_{name_of(length)}_{step:08d}.safetensors"
