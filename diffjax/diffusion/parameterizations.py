"""What the network's output F means. A public function of this file is a parameterization a config can name.

x0_hat = skip * x_t + out * F(input * x_t, t), as in EDM (Karras et al. 2022, eq. 7). So the regression target of F is
(x_0 - skip * x_t) / out for every one of them, and there is no table of conversions.
"""

from typing import NamedTuple

from jax import Array
from jax import numpy as jnp

from diffjax.diffusion.noise import Noise


class Coefficients(NamedTuple):
    """The three factors of x0_hat at one level of noise; the time the network is told is the level's own."""

    skip: Array
    out: Array
    input: Array


def eps(noise: Noise) -> Coefficients:
    """The network predicts the noise: DDPM (Ho et al. 2020), eq. 11. Has no value where alpha = 0."""
    return Coefficients(1.0 / noise.alpha, -noise.sigma / noise.alpha, jnp.ones_like(noise.alpha))


def x0(noise: Noise) -> Coefficients:
    """The network predicts the clean image."""
    return Coefficients(jnp.zeros_like(noise.alpha), jnp.ones_like(noise.alpha), jnp.ones_like(noise.alpha))


def v(noise: Noise) -> Coefficients:
    """The network predicts v = alpha eps - sigma x_0 of a variance-preserving process (Salimans & Ho 2022, app. D)."""
    return Coefficients(noise.alpha, -noise.sigma, jnp.ones_like(noise.alpha))
