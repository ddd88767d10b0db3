"""How much an error counts at each level. A public function of this file is a weighting a config can name.

A weighting maps a level and the parameterization's coefficients there to the factor on |x0_hat - x_0|^2. An error in
eps is SNR times that in x_0, one in v SNR + 1 times, one in the network's own output 1 / out^2 times.
"""

from jax import Array
from jax import numpy as jnp

from diffjax.diffusion.noise import Noise
from diffjax.diffusion.parameterizations import Coefficients


def simple(noise: Noise, coefficients: Coefficients) -> Array:
    """The unweighted error of the network's own output. For eps it is DDPM's L_simple (Ho et al. 2020, eq. 14).

    For the parameterization edm it is EDM's loss.
    """
    del noise
    return 1.0 / coefficients.out**2


def snr(noise: Noise, coefficients: Coefficients) -> Array:
    """The unweighted error of eps, whatever the network predicts: Salimans & Ho 2022, eq. 9."""
    del coefficients
    return _snr(noise)


def truncated_snr(noise: Noise, coefficients: Coefficients) -> Array:
    """max(SNR, 1), the larger of the errors of x_0 and eps: Salimans & Ho 2022, sec. 4."""
    del coefficients
    return jnp.maximum(_snr(noise), 1.0)


def min_snr(noise: Noise, coefficients: Coefficients, *, gamma: float = 5.0) -> Array:
    """min(SNR, gamma): Hang et al. 2023, sec. 3.4."""
    del coefficients
    return jnp.minimum(_snr(noise), gamma)


def p2(noise: Noise, coefficients: Coefficients, *, gamma: float = 1.0, k: float = 1.0) -> Array:
    """The error of eps over (k + SNR)^gamma: Choi et al. 2022, eq. 8."""
    del coefficients
    return _snr(noise) / (k + _snr(noise)) ** gamma


def edm(noise: Noise, coefficients: Coefficients, *, sigma_data: float = 0.5) -> Array:
    """(sigma^2 + s^2) / (sigma s)^2 of EDM (Karras et al. 2022, table 1), with sigma / alpha for sigma: SNR + 1 / s^2.

    With the parameterization edm this is `simple`.
    """
    del coefficients
    return _snr(noise) + 1.0 / sigma_data**2


def _snr(noise: Noise) -> Array:
    return (noise.alpha / noise.sigma) ** 2
