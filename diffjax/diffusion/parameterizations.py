"""What the network's output F means. A public function of this file is a parameterization a config can name.

x0_hat = skip * x_t + out * F(input * x_t, time), as in EDM (Karras et al. 2022, eq. 7). So the regression target of F
is (x_0 - skip * x_t) / out for every one of them, and there is no table of conversions. All hold for any alpha and
sigma, not only for alpha^2 + sigma^2 = 1.
"""

from typing import NamedTuple

from jax import Array
from jax import numpy as jnp

from diffjax.diffusion.levels import Schedule
from diffjax.diffusion.noise import Noise, log_snr, posterior_weights


class Coefficients(NamedTuple):
    """The factors of x0_hat at one level of noise, and what the network is told of it."""

    skip: Array
    out: Array
    input: Array
    time: Array  # t - 1, as the published models count from zero, but for edm


def eps(noise: Noise) -> Coefficients:
    """The network predicts the noise: DDPM (Ho et al. 2020), eq. 11. Has no value where alpha = 0."""
    return _plain(1.0 / noise.alpha, -noise.sigma / noise.alpha, noise)


def x0(noise: Noise) -> Coefficients:
    """The network predicts the clean image."""
    return _plain(jnp.zeros_like(noise.alpha), jnp.ones_like(noise.alpha), noise)


def v(noise: Noise) -> Coefficients:
    """The network predicts v = alpha eps - sigma x_0: Salimans & Ho 2022, app. D."""
    power = noise.alpha**2 + noise.sigma**2
    return _plain(noise.alpha / power, -noise.sigma / power, noise)


def flow(noise: Noise) -> Coefficients:
    """The network predicts the velocity eps - x_0 of a rectified flow: Liu et al. 2022, eq. 1; Esser et al. 2024."""
    total = noise.alpha + noise.sigma
    return _plain(1.0 / total, -noise.sigma / total, noise)


def edm(noise: Noise, *, sigma_data: float = 0.5) -> Coefficients:
    """EDM's preconditioning (Karras et al. 2022, table 1): F's input and target have unit variance at every level.

    For data of standard deviation `sigma_data`. At alpha = 1 these are the paper's; elsewhere they are the paper's for
    x_t / alpha and sigma / alpha. The network is told log(sigma / alpha) / 4.
    """
    scale = jnp.sqrt(noise.sigma**2 + (noise.alpha * sigma_data) ** 2)
    time = jnp.clip(-log_snr(noise) / 8.0, -10.0, 10.0)  # finite where alpha = 0
    return Coefficients(noise.alpha * sigma_data**2 / scale**2, noise.sigma * sigma_data / scale, 1.0 / scale, time)


def mu(noise: Noise, *, schedule: Schedule) -> Coefficients:
    """The network predicts the mean of q(x_t-1 | x_t, x_0): the "mu" of DDPM's ablation (Ho et al. 2020, table 2).

    For a discrete schedule: the previous step is its own.
    """
    x_weight, x0_weight = posterior_weights(noise, schedule(jnp.maximum(noise.t - 1, 0)))
    return _plain(-x_weight / x0_weight, 1.0 / x0_weight, noise)


def _plain(skip: Array, out: Array, noise: Noise) -> Coefficients:
    return Coefficients(skip, out, jnp.ones_like(noise.alpha), noise.t - 1.0)
