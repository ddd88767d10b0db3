"""Clipping of x_0 to the range of the data. A public function of this file is a choice a config can name."""

from jax import Array
from jax import numpy as jnp
from jaxtyping import Float


def none(x0: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Returns the estimate unchanged: for latents and embeddings, which have no range."""
    return x0


def clip(x0: Float[Array, "B ..."], *, limit: float = 1.0) -> Float[Array, "B ..."]:
    """Clips to [-limit, limit], in every step.

    Args:
      x0: estimate [B, ...].
      limit: > 0; for latents and embeddings, which have no range, it has to be set.

    Raises:
      ValueError: `limit` is not above 0.

    Reference: DDPM (Ho et al. 2020), code.
    """
    if limit <= 0:
        raise ValueError(f"limit={limit:g}: must be above 0")
    return jnp.clip(x0, -limit, limit)


def dynamic(
    x0: Float[Array, "B ..."], *, percentile: float = 99.5, limit: float = float("inf")
) -> Float[Array, "B ..."]:
    """Clips to [-s, s] and divides by s: dynamic thresholding, which saturates fewer pixels under strong guidance.

    s is a percentile of |x_0| of the example, and from 1 to `limit`.

    Args:
      x0: estimate [B, ...].
      percentile: from 0 to 100.
      limit: greatest s, at least 1; diffusers' `sample_max_value`.

    Raises:
      ValueError: an option is outside its range.

    Reference: Imagen (Saharia et al. 2022), sec. 2.3.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile={percentile:g}: must be from 0 to 100")
    if limit < 1:
        raise ValueError(f"limit={limit:g}: must be at least 1")
    size = jnp.percentile(jnp.abs(x0), percentile, axis=tuple(range(1, x0.ndim)), keepdims=True)
    size = jnp.clip(size, 1.0, limit)
    return jnp.clip(x0, -size, size) / size
