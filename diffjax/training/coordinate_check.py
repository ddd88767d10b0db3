"""Coordinate check of muP: sizes of activations by width, in the first steps of training.

Under muP the size of an activation does not depend on the width, at initialisation and after some updates. Under the
standard parametrization the changes of activations grow with the width.

Reference: Yang et al. 2022, "Tensor Programs V", on coordinate checking.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax import models
from diffjax.errors import UserError
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.parameter_paths import path_of
from diffjax.runs.config_files import with_fields
from diffjax.training.compiled_step import compile_step, make_optimizers
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec, Variables

Sizes = Mapping[str, float]  # mean absolute value by name of an activation
_PROBES = 16  # inputs of the network whose activations are measured


def config_of_width(config: ConfigDict, width: int, mup_base_width: int) -> ConfigDict:
    """Returns a config with another width of its network and heads of the same size, without warm-up and decay.

    Raises:
      UserError: the network is not a UNet or DiT, or has no such width.
    """
    architecture = config.model.get("architecture", "unet")
    if config.system != "ddpm" or architecture not in ("unet", "dit"):
        raise UserError(
            f"system={config.system}, model.architecture={architecture}: a coordinate check requires a diffusion model "
            "of pixels (system=ddpm) with a UNet or a DiT"
        )
    fields = {"model.channels": width}
    if architecture == "dit":
        heads = config.model.heads * width / config.model.width
        if not heads or heads != int(heads):
            raise UserError(
                f"--coordinates={width}: requires heads of the size at model.width={config.model.width}, so {heads:g} "
                f"heads; change model.heads={config.model.heads}"
            )
        fields = {"model.width": width, "model.heads": int(heads)}
    schedule = {"train.learning_rate_schedule": "constant", "train.warmup_steps": 0}
    return with_fields(config, {**fields, **schedule, "train.mup_base_width": mup_base_width})


def measure(config: ConfigDict, spec: ImageSpec, batch: Mapping[str, Any], steps: int) -> list[dict[str, float]]:
    """Trains on one batch.

    Returns:
      The sizes of the activations before training, and after each of the steps.
    """
    model = models.build(config, spec)
    assert isinstance(model, DiffusionModel)
    devices = Devices.create(num_devices=1)
    step, state = compile_step(config, model, make_optimizers(config, model), devices, len(batch["index"]))
    size = jax.jit(lambda variables: activation_sizes(model, variables))
    sizes, placed = [size(state.variables)], devices.put_batch(batch)
    for _ in range(steps):
        state, _ = step(state, placed, {})
        sizes.append(size(state.variables))
    return [{name: float(value) for name, value in each.items()} for each in jax.device_get(sizes)]


def activation_sizes(model: DiffusionModel, variables: Variables) -> dict[str, jax.Array]:
    """Returns the mean absolute value of the output of each layer of the network.

    The inputs are those of noised Gaussian data of unit variance, at noise levels that cover the diffusion process.
    """
    params = variables["params"]["model"]
    x, t, inputs = model.noised_arguments(params, jax.random.key(0), _PROBES)
    changes: dict[str, Any] = {"remat": "none"}
    if hasattr(model.network, "scan_blocks"):
        changes["scan_blocks"] = False  # activations of each block
    network = model.network.clone(**changes)
    options: dict[str, Any] = {**inputs, "capture_intermediates": True, "mutable": ["intermediates"]}
    _, collections = network.apply({"params": params}, x, t, **options)
    outputs = jax.tree_util.tree_leaves_with_path(collections["intermediates"])
    return {
        path_of(keys[:-2]) or "output": jnp.abs(leaf).mean()  # without the method's name and the number of the call
        for keys, leaf in outputs
        if isinstance(leaf, jax.Array)
    }


def slopes(widths: Sequence[int], sizes: Sequence[Sizes]) -> dict[str, float]:
    """Returns the slope of log(size) over log(width) of each activation.

    Args:
      sizes: sizes at each width. Activations that are zero at some width are left out.
    """
    x = np.log(widths)
    return {
        name: float(np.polyfit(x, np.log([each[name] for each in sizes]), 1)[0])
        for name in sizes[0]
        if all(each[name] > 0 for each in sizes)
    }
