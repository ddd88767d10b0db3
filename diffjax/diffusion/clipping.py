"""How an estimate of x_0 is kept in the data's range. A public function of this file is a choice a config can name."""

from jax import Array
from jax import numpy as jnp
from jaxtyping import Float


def none(x0: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """As it is: for latents, which have no range."""
    return x0


def clip(x0: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """To [-1, 1], at each step: DDPM's sampler (Ho et al. 2020, code)."""
    return jnp.clip(x0, -1.0, 1.0)


def dynamic(x0: Float[Array, "B ..."], *, percentile: float = 99.5) -> Float[Array, "B ..."]:
    """To [-s, s], then divided by s: dynamic thresholding, Imagen (Saharia et al. 2022), sec. 2.3.

    s is the `percentile` (0 to 100) of an example's |x_0|, and at least 1: high guidance saturates fewer pixels.
    Raises ValueError for another percentile.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile is {percentile:g}: from 0 to 100")
    size = jnp.percentile(jnp.abs(x0), percentile, axis=tuple(range(1, x0.ndim)), keepdims=True)
    size = jnp.maximum(size, 1.0)
    return jnp.clip(x0, -size, size) / size
