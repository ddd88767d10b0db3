"""Maximal update parametrization (muP): learning rates and initial values that transfer from one width to another.

The network is compared with the same network at a base width. A parameter has a kind, by the ratio m of its number of
inputs, and that of its outputs, to those at the base width:

    fixed   neither depends on the width;
    input   only the outputs do: first layers, embedding tables, gains and biases;
    hidden  both do;
    output  only the inputs do: last layers.

With Adam, the learning rate of hidden and output parameters is divided by m. Initial values have the root mean square
that they have at the base width, divided by sqrt(m) for hidden and by m for output parameters. This form of muP has no
factors in the network, so trained weights are sampled and exported like others. At the base width all factors are 1.
Attention keeps its scale 1 / sqrt(d), because the size d of a head must not depend on the width.

References:
  Yang et al. 2022, "Tensor Programs V: tuning large neural networks via zero-shot hyperparameter transfer", table 3.
  Zheng et al. 2025, "Scaling diffusion transformers efficiently via muP".
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax.errors import UserError, validate_integer
from diffjax.models.base import Model
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.lora import is_lora
from diffjax.nn.dit import DiT
from diffjax.nn.unet import UNet
from diffjax.typing import PRNGKey, Variables

_FIELD = "train.mup_base_width"


class Width(NamedTuple):
    """Dependence of a parameter on the width.

    Attributes:
      kind: "fixed" | "input" | "hidden" | "output".
      multiplier: number of inputs in units of that at the base width; 1 for the kinds "fixed" and "input".
    """

    kind: str
    multiplier: float

    @property
    def rate_factor(self) -> float:
        """Factor of the learning rate of Adam."""
        return 1 / self.multiplier

    @property
    def initial_factor(self) -> float:
        """Root mean square of the initial values in units of that at the base width."""
        return self.multiplier ** {"hidden": -0.5, "output": -1.0}.get(self.kind, 0.0)


def base_model(config: ConfigDict, model: Model) -> DiffusionModel | None:
    """Returns a model with its network at the width of `train.mup_base_width`; None: it is 0, no muP.

    Raises:
      UserError: the model has another network than a UNet or a DiT, or its heads depend on the width.
    """
    base = validate_integer(_FIELD, config.train.get("mup_base_width", 0), low=0)
    if not base:
        return None
    if is_lora(config) or not isinstance(model, DiffusionModel) or not isinstance(model.network, UNet | DiT):
        raise UserError(
            f"{_FIELD}={base}: is only supported for all weights of a diffusion model with model.architecture=unet or "
            "dit; set it to 0"
        )
    narrow = dataclasses.replace(model, network=_network_of_width(model.network, base, model.data_space.shape[0]))
    try:
        _ = narrow.variable_shapes
    except ValueError as error:
        raise UserError(f"{_FIELD}={base}: the network has no such width: {error}; choose another") from error
    return narrow


def _network_of_width(network: UNet | DiT, base: int, side: int) -> UNet | DiT:
    """Returns a network with another width and heads of the same size."""
    if isinstance(network, UNet):
        if network.head_channels is None and network.num_attention_blocks(side):
            raise UserError(
                f"{_FIELD}={base}: requires heads whose size does not depend on the width; set model.head_channels "
                "in place of model.heads"
            )
        return network.clone(channels=base)
    heads = network.heads * base / network.width
    if heads != int(heads) or not heads:
        raise UserError(
            f"{_FIELD}={base}: requires heads of the size at model.width={network.width}, so {heads:g} heads; change "
            f"model.heads={network.heads}"
        )
    return network.clone(width=base, heads=int(heads))


def widths(model: Model, base: Model) -> Any:
    """Returns the `Width` of each parameter of a model.

    Args:
      base: the model at the base width.

    Returns:
      A tree with the structure of the parameters, by group.
    """

    def width(leaf: Any, narrow: Any) -> Width:
        *inputs, outputs = leaf.shape or (1,)
        *narrow_inputs, narrow_outputs = narrow.shape or (1,)
        ratio = math.prod(inputs) / math.prod(narrow_inputs)
        if ratio != 1:
            return Width("output" if outputs == narrow_outputs else "hidden", ratio)
        return Width("fixed" if outputs == narrow_outputs else "input", 1.0)

    return jax.tree.map(width, model.variable_shapes["params"], base.variable_shapes["params"])


def rate_factors(model: Model, base: Model) -> Any:
    """Returns the factor of the learning rate of Adam of each parameter, as a tree by group."""
    return jax.tree.map(lambda width: width.rate_factor, widths(model, base), is_leaf=lambda x: isinstance(x, Width))


def initial_variables(model: Model, base: Model, key: PRNGKey) -> Variables:
    """Returns fresh variables with the initial values of muP. Consumes `key`.

    Parameters that do not depend on the width have the values of `model.init`; so have all of them at the base width.
    """
    variables, narrow = model.init(key), base.init(key)

    def scaled(leaf: Any, narrow: Any, width: Width) -> Any:
        if leaf.shape == narrow.shape:
            return leaf
        size, target = (jnp.sqrt(jnp.mean(jnp.square(x))) for x in (leaf, narrow))
        return leaf * jnp.where(size > 0, width.initial_factor * target / jnp.where(size > 0, size, 1.0), 1.0)

    params = jax.tree.map(scaled, variables["params"], narrow["params"], widths(model, base))
    return {**variables, "params": params}
