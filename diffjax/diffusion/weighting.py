"""How much an error counts at each level. A public function of this file is a weighting a config can name.

A weighting maps a level and the parameterization's coefficients there to the factor on |F - target|^2.
"""

from jax import Array
from jax import numpy as jnp

from diffjax.diffusion.noise import Noise
from diffjax.diffusion.parameterizations import Coefficients


def simple(noise: Noise, coefficients: Coefficients) -> Array:
    """One: the unweighted error of the network's own output. For eps it is DDPM's L_simple (Ho et al. 2020, eq. 14)."""
    del coefficients
    return jnp.ones_like(noise.alpha)
