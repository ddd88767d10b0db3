"""The variance of a step of the reverse process. A public function of this file is a choice a config can name.

Each maps the two variances that are right for extreme data, and the network's say where it has one, to a variance:
`small`, that of the posterior q(x_next | x_now, x_0), for data of one point; `large`, that of the forward step, for
x_0 ~ N(0, I): DDPM (Ho et al. 2020), sec. 3.2.
"""

from jax import Array
from jax import numpy as jnp


def fixed_small(small: Array, large: Array, interpolation: Array | None = None) -> Array:
    """DDPM's beta-tilde."""
    del large, interpolation
    return small


def fixed_large(small: Array, large: Array, interpolation: Array | None = None) -> Array:
    """DDPM's beta. Over a sub-sequence it is the square of DDIM's sigma-hat (Song et al. 2021, sec. 5)."""
    del small, interpolation
    return large


def learned_range(small: Array, large: Array, interpolation: Array) -> Array:
    """Between the two in the logarithm, where the network says: Improved DDPM (Nichol & Dhariwal 2021), eq. 15.

    `interpolation` is 0 for small and 1 for large, and not bounded.
    """
    return jnp.exp(interpolation * jnp.log(large) + (1.0 - interpolation) * jnp.log(jnp.maximum(small, _LEAST)))


_LEAST = 1e-20  # keeps the logarithm of a variance of zero finite
