"""Repeats the step that ended a run, to find its non-finite numbers."""

import contextlib
import dataclasses
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.models.lora import adapt, is_lora
from diffjax.models.parameter_paths import flatten
from diffjax.runs.checkpoints import Checkpoints
from diffjax.runs.loading import build_model, read_lora_base
from diffjax.runs.workdir import Workdir
from diffjax.training.compiled_step import compile_step, init_and_step_keys, make_optimizers
from diffjax.training.sharding import Devices
from diffjax.training.step import example_keys, make_step_context


@dataclasses.dataclass(frozen=True)
class Replay:
    """Results of a repeated step.

    Attributes:
      step: the step, counted from 1.
      losses: loss of each example, [B] float32, by group of parameters.
      gradients: names of non-finite gradients, such as "model/Dense_0/kernel".
      parameters: names of non-finite parameters.
    """

    step: int
    losses: Mapping[str, np.ndarray]
    gradients: Sequence[str]
    parameters: Sequence[str]


def replay(workdir: Workdir) -> Replay:
    """Computes the losses and gradients of the step that ended a run, on one device.

    Raises:
      UserError: no step ended the run, or the stored state or batch is damaged.
    """
    if not workdir.failed.exists():
        raise UserError(f"{workdir.failed}: is missing, as no step of {workdir.path} has failed; nothing to replay")
    config = workdir.read_config()
    model = build_model(config, workdir.path, training=True)
    if is_lora(config):
        model = adapt(config, model, read_lora_base(workdir, model))
    devices = Devices.create(num_devices=1)
    with contextlib.closing(Checkpoints(workdir.failed)) as checkpoints:
        _, state = compile_step(config, model, make_optimizers(config, model), devices, 1, checkpoints)
    batch: Any = _read_batch(workdir.failed / "batch.npz")
    context = make_step_context(state.step, init_and_step_keys(config)[1], len(batch["index"]), 1)
    variables = {**state.variables, "ema": state.ema, "frozen": model.frozen}
    keys = example_keys(context, batch)

    def gradients_and_losses(group):
        def mean_loss(params):
            losses, _ = model.losses[group](
                {**variables, "params": {**variables["params"], group: params}}, batch, keys, context
            )
            return losses.mean(), losses

        return jax.grad(mean_loss, has_aux=True)(variables["params"][group])

    gradients, losses = {}, {}
    for group in model.losses:
        gradients[group], losses[group] = jax.jit(gradients_and_losses, static_argnums=0)(group)
    return Replay(
        step=int(state.step) + 1,
        losses=jax.device_get(losses),
        gradients=_non_finite_names(gradients),
        parameters=_non_finite_names(variables["params"]),
    )


def _read_batch(path: Path) -> dict[str, np.ndarray]:
    """Reads the batch of a failed step. Raises UserError if it is missing or damaged."""
    advice = f"delete {path.parent} and run launch.py train again, which fails at the same step and writes it again"
    try:
        with np.load(path) as stored:
            batch = dict(stored)
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; {advice}") from error
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: is damaged ({reason}); {advice}") from error
    if missing := {next((name for name in ("latent", "x0") if name in batch), "image"), "index"} - batch.keys():
        raise UserError(f"{path}: is damaged (it has no array {sorted(missing)[0]!r}); {advice}")
    return batch


def _non_finite_names(tree: Any) -> list[str]:
    return [name for name, leaf in flatten(tree).items() if not jnp.isfinite(leaf).all()]
