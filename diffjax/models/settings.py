"""How systems without a diffusion process are sampled: a few numbers, each a traced input."""

from collections.abc import Mapping

from jax import Array
from jax import numpy as jnp

from diffjax.errors import checked_number, checked_whole
from diffjax.registry import check_options


def make_settings(
    system: str, defaults: Mapping[str, float], sampler_config: Mapping, *, capacity: int | None = None, **overrides
) -> dict[str, Array]:
    """The settings of a config's `sampler` section with `overrides`, the rest by `defaults`; their kinds are kept.

    Raises UserError for one that `system` does not take, and for one that is not finite. There are no steps, so none
    are padded to `capacity`.
    """
    given = {**sampler_config, **overrides}
    check_options(f"system={system}", defaults, given)
    for name, value in given.items():
        if isinstance(defaults[name], int):
            checked_whole(f"sampler.{name}", value, low=0)
        elif value != defaults[name]:  # which may be infinite
            checked_number(f"sampler.{name}", value)
    kinds = {name: jnp.int32 if isinstance(value, int) else jnp.float32 for name, value in defaults.items()}
    return {name: jnp.asarray(given.get(name, value), kinds[name]) for name, value in defaults.items()}
