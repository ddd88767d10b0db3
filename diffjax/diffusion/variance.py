"""Variances of the reverse process. A public function of this file is a choice a config can name.

Each function maps `small` and `large`, and for learned variances the interpolation of the network, to the variance of a
step. `small` is that of the posterior q(x_next | x_now, x_0), optimal for data of one point; `large` is that of the
forward step, optimal for x_0 ~ N(0, I): DDPM (Ho et al. 2020), sec. 3.2.
"""

from jax import Array
from jax import numpy as jnp


def fixed_small(small: Array, large: Array, interpolation: Array | None = None) -> Array:
    """Returns the small variance, DDPM's beta-tilde."""
    del large, interpolation
    return small


def fixed_large(small: Array, large: Array, interpolation: Array | None = None) -> Array:
    """Returns the large variance, DDPM's beta; over a sub-sequence, the square of DDIM's sigma-hat.

    Reference: DDIM (Song et al. 2021), sec. 5.
    """
    del small, interpolation
    return large


def learned_range(small: Array, large: Array, interpolation: Array) -> Array:
    """Interpolates between both variances in the logarithm.

    Args:
      small: variance of the posterior.
      large: variance of the forward step.
      interpolation: 0 for small, 1 for large; not bounded.

    Reference: Improved DDPM (Nichol & Dhariwal 2021), eq. 15.
    """
    return jnp.exp(interpolation * jnp.log(large) + (1.0 - interpolation) * jnp.log(jnp.maximum(small, _MIN_VARIANCE)))


_MIN_VARIANCE = 1e-20  # keeps the logarithm of zero finite
