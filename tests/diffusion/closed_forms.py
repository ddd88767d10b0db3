"""Terms of the variational bound in float64, from the papers; and discrete schedules with traced tables."""

import numpy as np
from jax import numpy as jnp
from scipy import stats

from diffjax.diffusion.noise_schedules import Discrete, ScheduleTables

BIN = 2 / 255


def kl(mean, var, other_mean, other_var):
    return (np.log(other_var / var) + (var + (mean - other_mean) ** 2) / other_var - 1) / 2


def decoder(x0, mean, std):
    """-log2 of the Gaussian's probability of the bin, float64, outer bins open; precise in both tails."""
    x0, mean = np.asarray(x0, np.float64), np.asarray(mean, np.float64)
    above = np.where(x0 > 0.999, np.inf, (x0 - mean + BIN / 2) / std)
    below = np.where(x0 < -0.999, -np.inf, (x0 - mean - BIN / 2) / std)
    above, below = np.where(below > 0, -below, above), np.where(below > 0, -above, below)
    high, low = stats.norm.logcdf(above), stats.norm.logcdf(below)
    return -(high + np.log1p(-np.exp(low - high))) / np.log(2)


def discrete(alphas, sigmas):
    """Returns the discrete schedule of levels [T + 1], which may be traced."""
    with np.errstate(divide="ignore"):
        log_snr = jnp.clip(2 * (jnp.log(alphas) - jnp.log(sigmas)), -40.0, 80.0)
    power = alphas**2 + sigmas**2
    return Discrete(len(alphas) - 1, ScheduleTables(alphas, sigmas, log_snr, alphas**2 / power, 1 / power))
