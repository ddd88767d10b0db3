"""Distances in the losses of flow maps. A public function of this file is a metric a config can name.

A metric maps errors [B, ...] to a value per example [B].
"""

import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float


def l2(error: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Returns the mean square over the values of an example."""
    return jax.vmap(lambda e: jnp.mean(e**2))(error)


def pseudo_huber(error: Float[Array, "B ..."], *, c: float = 0.00054) -> Float[Array, " B"]:
    """Returns sqrt(|e|^2 + d c^2) - sqrt(d) c, for errors of d values: quadratic near zero, then the norm.

    Args:
      error: errors.
      c: scale of an error of one value; 0: the norm, as in ECT.

    Reference: Song & Dhariwal 2024 (iCT), eq. 8.
    """

    def one(e):
        square = jnp.sum(e**2)
        if c:
            return jnp.sqrt(square + e.size * c**2) - e.size**0.5 * c
        safe = jnp.where(square > 0, square, 1.0)  # the gradient of the norm at zero is zero
        return jnp.where(square > 0, jnp.sqrt(safe), 0.0)

    return jax.vmap(one)(error)


def elementwise_pseudo_huber(error: Float[Array, "B ..."], *, c: float = 0.001) -> Float[Array, " B"]:
    """Returns the mean of sqrt(e^2 + c^2) - c over the values of an example.

    Args:
      error: errors.
      c: scale of an error, above 0.

    Raises:
      ValueError: `c` is not above 0.

    Reference: the training script of latent consistency models in diffusers, whose `huber_c` is c.
    """
    if c <= 0:
        raise ValueError(f"c={c:g}: must be above 0")
    return jax.vmap(lambda e: jnp.mean(jnp.sqrt(e**2 + c**2) - c))(error)


def adaptive(error: Float[Array, "B ..."], *, p: float = 1.0, c: float = 0.01) -> Float[Array, " B"]:
    """Returns |e|^2 / (|e|^2 + c)^p, where no gradient passes through the denominator.

    Args:
      error: errors.
      p: 0: the squared error; 0.5: the gradient of a pseudo-Huber loss; 1: gradients of large errors have a length of
        2 / |e|.
      c: bounds the weight of small errors, > 0.

    Raises:
      ValueError: `c` is not above 0.

    Reference: MeanFlow (Geng et al. 2025), eq. 22; c = 0.01 as in its code.
    """
    if c <= 0:
        raise ValueError(f"c={c:g}: must be above 0")

    def one(e):
        square = jnp.sum(e**2)
        return square / lax.stop_gradient(square + c) ** p

    return jax.vmap(one)(error)
