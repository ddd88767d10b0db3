"""Loss weightings by noise level. A public function of this file is a weighting a config can name.

A weighting maps a noise level and the coefficients of the parameterization to the factor on |x0_hat - x_0|^2. The error
of eps is SNR times that of x_0, the error of v SNR + 1 times, the error of the network's output 1 / out^2 times.
"""

from jax import Array
from jax import numpy as jnp

from diffjax.diffusion.noise import Noise
from diffjax.diffusion.parameterizations import Coefficients


def simple(noise: Noise, coefficients: Coefficients) -> Array:
    """Weights the error of the network's own output by 1. With parameterization edm: the loss of EDM.

    Reference: for eps, L_simple of DDPM (Ho et al. 2020), eq. 14.
    """
    del noise
    return 1.0 / coefficients.out**2


def learned(noise: Noise, coefficients: Coefficients) -> Array:
    """Weights as `simple`, and by a learned factor per noise level: learned_weighting.py. Applies to all losses.

    Losses without a weighting have the learned factor only.

    Reference: EDM2 (Karras et al. 2024), eq. 21 and 22; sCM (Lu & Song 2025), algorithm 1.
    """
    return simple(noise, coefficients)


def x0(noise: Noise, coefficients: Coefficients) -> Array:
    """Weights the error of x_0 by 1, whatever the network predicts."""
    del coefficients
    return jnp.ones_like(noise.alpha)


def snr(noise: Noise, coefficients: Coefficients) -> Array:
    """Weights the error of eps by 1, whatever the network predicts.

    Reference: Salimans & Ho 2022, eq. 9.
    """
    del coefficients
    return _snr(noise)


def flow(noise: Noise, coefficients: Coefficients, *, min_sigma: float = 0.0) -> Array:
    """Weights the error of the velocity eps - x_0 by 1, whatever the network predicts.

    Args:
      noise: noise level.
      coefficients: have no effect.
      min_sigma: smaller sigmas have the weight of this one, which bounds it; 0.05 in JiT's code.

    Reference: rectified flow (Liu et al. 2022), eq. 1; JiT (Li & He 2025), table 1.
    """
    del coefficients
    return ((noise.alpha + noise.sigma) / jnp.maximum(noise.sigma, min_sigma)) ** 2


def truncated_snr(noise: Noise, coefficients: Coefficients) -> Array:
    """Returns max(SNR, 1): the larger of the errors of x_0 and eps.

    Reference: Salimans & Ho 2022, sec. 4.
    """
    del coefficients
    return jnp.maximum(_snr(noise), 1.0)


def min_snr(noise: Noise, coefficients: Coefficients, *, gamma: float = 5.0) -> Array:
    """Returns min(SNR, gamma).

    Reference: Hang et al. 2023, sec. 3.4.
    """
    del coefficients
    return jnp.minimum(_snr(noise), gamma)


def p2(noise: Noise, coefficients: Coefficients, *, gamma: float = 1.0, k: float = 1.0) -> Array:
    """Returns SNR / (k + SNR)^gamma.

    Reference: Choi et al. 2022, eq. 8.
    """
    del coefficients
    return _snr(noise) / (k + _snr(noise)) ** gamma


def edm(noise: Noise, coefficients: Coefficients, *, sigma_data: float = 0.5) -> Array:
    """Returns SNR + 1 / s^2: EDM's (sigma^2 + s^2) / (sigma s)^2 at sigma / alpha. With parameterization edm: `simple`.

    Args:
      noise: noise level.
      coefficients: have no effect.
      sigma_data: s, standard deviation of the data.

    Reference: EDM (Karras et al. 2022), table 1.
    """
    del coefficients
    return _snr(noise) + 1.0 / sigma_data**2


def _snr(noise: Noise) -> Array:
    return (noise.alpha / noise.sigma) ** 2
