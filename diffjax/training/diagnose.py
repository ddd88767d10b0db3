"""The step that ended a run, once more: which of its numbers are not finite."""

import contextlib
import dataclasses
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.runs.checkpoints import Checkpoints
from diffjax.runs.exported_weights import name_of
from diffjax.runs.loading import build_system
from diffjax.runs.workdir import Workdir
from diffjax.training.compiled_step import compile_step, keys_of_run, make_optimizers
from diffjax.training.sharding import Devices
from diffjax.training.step import keys_of, moment_of


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a step gave. Names of numbers are paths such as "model/Dense_0/kernel"."""

    step: int
    losses: Mapping[str, np.ndarray]  # [B] float32, of each example by the group of parameters
    gradients: Sequence[str]  # those that are not finite
    parameters: Sequence[str]  # likewise


def replay(workdir: Workdir) -> Replay:
    """Computes the losses and gradients of the step that ended a run, on one device.

    Raises UserError where no step did.
    """
    if not workdir.failed.exists():
        raise UserError(f"no step of {workdir.path} has failed: there is no {workdir.failed}")
    config = workdir.read_config()
    system = build_system(config, workdir.path, training=True)
    devices = Devices.create(count=1)
    with contextlib.closing(Checkpoints(workdir.failed)) as failed:
        _, state = compile_step(config, system, make_optimizers(config, system), devices, 1, failed)
    batch = _read_batch(workdir.failed / "batch.npz")
    key = keys_of_run(config)[1]
    moment = moment_of(state.step, key, len(batch["index"]), 1)
    variables = {**state.variables, "frozen": system.frozen}
    keys = keys_of(moment, batch)

    def each(group):
        def mean_loss(params):
            own = {**variables, "params": {**variables["params"], group: params}}
            losses, _ = system.objective.losses[group](own, batch, keys, moment)
            return losses.mean(), losses

        return jax.grad(mean_loss, has_aux=True)(variables["params"][group])

    gradients, losses = {}, {}
    for group in system.objective.losses:
        gradients[group], losses[group] = jax.jit(each, static_argnums=0)(group)
    return Replay(
        step=int(state.step) + 1,
        losses=jax.device_get(losses),
        gradients=_not_finite(gradients),
        parameters=_not_finite(variables["params"]),
    )


def _read_batch(path: Path) -> dict[str, np.ndarray]:
    """Reads the batch of a failed step. Raises UserError, which names the file, where it is missing or damaged."""
    advice = f"delete {path.parent} and run launch.py train again, which fails at the same step and writes it anew"
    try:
        with np.load(path) as stored:
            batch = dict(stored)
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; {advice}") from error
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path} is damaged ({reason}): {advice}") from error
    if missing := {"image", "index"} - batch.keys():
        raise UserError(f"{path} is damaged (it has no array {sorted(missing)[0]!r}): {advice}")
    return batch


def _not_finite(tree) -> list[str]:
    return [name_of(path) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if not jnp.isfinite(leaf).all()]
