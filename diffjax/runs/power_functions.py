"""Averages of the weights with power functions as profiles: their lengths, updates and reconstruction.

The average of theta up to step t has the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1). Its length is the
standard deviation of this profile, relative to t: sigma_rel. A linear combination of averages, with the weights x that
fit the profile of another average best, reconstructs that average.

Reference: Karras et al. 2024 (EDM2), sections 3.1 and 3.2, appendix C. Equation numbers are those of the paper.
"""

import math
from collections.abc import Sequence

import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from diffjax.errors import validate_number
from diffjax.typing import Scalar

MAX_LENGTH = 0.28  # gamma is 0 at 1 / sqrt(12): all steps have the same weight


def check_length(name: str, length: float) -> float:
    """Returns a relative length if it is in range. Raises UserError otherwise; the message has the field's `name`."""
    return validate_number(name, length, low=0, high=MAX_LENGTH, exclusive="low")


def exponent(length: float) -> float:
    """Returns gamma of the relative length sigma_rel: equation 126 and algorithm 2, the root of a cubic."""
    inverse = float(length) ** -2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def relative_length(gamma: float) -> float:
    """Returns sigma_rel of gamma: equation 123."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def update_weight(gamma: float, step: Scalar) -> Scalar:
    """Returns 1 - beta_gamma(t) = 1 - (1 - 1 / t)^(gamma + 1), the weight of the newest parameters: equation 127.

    Args:
      step: step t, from 1.
    """
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1.0 / step))  # accurate in float32 also for large t


def inner_product(t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike) -> np.ndarray:
    """Returns the integral of p_a p_b over steps: equation 151."""
    t_a, gamma_a, t_b, gamma_b = (np.asarray(value, np.float64) for value in (t_a, gamma_a, t_b, gamma_b))
    power = np.where(t_a < t_b, gamma_b, -gamma_a)
    numerator = (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** power
    return numerator / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def solve(
    steps: Sequence[int], lengths: Sequence[float], target_step: int, target_length: float
) -> tuple[np.ndarray, float]:
    """Returns the weights of stored averages that reconstruct another average: algorithm 3.

    Args:
      steps: step of each stored average.
      lengths: relative length of each.

    Returns:
      Weights, float64, with the sum 1, and the relative error of the reconstructed profile (L2, 0: exact).
    """
    t, gamma = np.array(steps, np.float64), np.array([exponent(length) for length in lengths])
    t_r, gamma_r = float(target_step), exponent(target_length)
    A = inner_product(t[:, None], gamma[:, None], t[None, :], gamma[None, :])
    b = inner_product(t, gamma, t_r, gamma_r)
    x = np.linalg.solve(A, b)
    x = x / x.sum()
    r = inner_product(t_r, gamma_r, t_r, gamma_r)
    return x, float(np.sqrt(max(x @ A @ x - 2 * x @ b + r, 0.0) / r))


def name_of(length: float) -> str:
    """Returns the name of an average of this relative length, such as "0.05"."""
    return f"{length:g}"
