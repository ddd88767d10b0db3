"""Clipping of x_0 to the range of the data. A public function of this file is a choice a config can name."""

from jax import Array
from jax import numpy as jnp
from jaxtyping import Float


def none(x0: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Returns the estimate unchanged: for latents and embeddings, which have no range."""
    return x0


def clip(x0: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Clips to [-1, 1], in every step.

    Reference: DDPM (Ho et al. 2020), code.
    """
    return jnp.clip(x0, -1.0, 1.0)


def dynamic(x0: Float[Array, "B ..."], *, percentile: float = 99.5) -> Float[Array, "B ..."]:
    """Clips to [-s, s] and divides by s: dynamic thresholding, which saturates fewer pixels under strong guidance.

    s is a percentile of |x_0| of the example, and at least 1.

    Args:
      x0: estimate [B, ...].
      percentile: from 0 to 100.

    Raises:
      ValueError: `percentile` is outside its range.

    Reference: Imagen (Saharia et al. 2022), sec. 2.3.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile={percentile:g}: must be from 0 to 100")
    size = jnp.percentile(jnp.abs(x0), percentile, axis=tuple(range(1, x0.ndim)), keepdims=True)
    size = jnp.maximum(size, 1.0)
    return jnp.clip(x0, -size, size) / size
