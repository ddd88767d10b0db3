"""Rematerialisation: which values of a block are kept for the backward pass, which computes the others again.

References:
  Chen et al. 2016, "Training deep nets with sublinear memory cost".
  Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models".
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import linen as nn
from jax import lax

from diffjax.nn.layers import check_choice

Module = TypeVar("Module", bound=nn.Module)


def _keep_convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive is lax.conv_general_dilated_p


# Products with weights are kept; those of attention are batched over examples and heads, and computed again: they are
# few operations and, quadratic in the number of tokens, much memory (Korthikanti et al. 2022, section 5).
_keep_products = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _keep_convolutions
)
_POLICIES: dict[str, Callable[..., bool] | None] = {"blocks": None, "dots": _keep_products}
_FORMER_NAMES = {False: "none", True: "blocks"}  # in configs of earlier versions


def rematerialize(block: type[Module], remat: str | bool, static_argnums: tuple[int, ...] = ()) -> type[Module]:
    """Returns a class of blocks that keep fewer values for the backward pass. Parameters, outputs and gradients agree.

    Args:
      block: class of modules.
      remat: "none": keep all values; "dots": the inputs, and the results of linear layers and convolutions; "blocks":
        the inputs alone. False and True are "none" and "blocks".
      static_argnums: arguments of a block that are not arrays, where 0 is the module.

    Raises:
      ValueError: an unknown name.
    """
    name = _FORMER_NAMES[remat] if isinstance(remat, bool) else remat
    if check_choice("remat", name, ("none", *_POLICIES)) == "none":
        return block
    return nn.remat(block, static_argnums=static_argnums, policy=_POLICIES[name])
