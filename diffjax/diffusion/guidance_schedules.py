"""Schedules of guidance scales. A public function of this file is a schedule that a config can name.

A schedule maps the progress of the reverse process, 0 at the last timestep T and 1 at the clean image, to the factor of
w = scale - 1. An interval of noise levels limits any of them: see guidance.py.
"""

from jax import Array
from jax import numpy as jnp
from jaxtyping import Float

Progress = Float[Array, ""]


def constant(progress: Progress) -> Array:
    """Returns 1: the same scale at all noise levels."""
    return jnp.ones_like(progress)


def linear(progress: Progress, *, low: Array | float = 0.0) -> Array:
    """Returns max(low, 2 progress), from 0 at pure noise to 2 at the image, with a mean of 1 at low = 0.

    Args:
      low: smallest factor, >= 0.

    Reference: Wang et al. 2024, Analysis of Classifier-Free Guidance Weight Schedulers: the linear schedule, and its
    clamped variant.
    """
    return jnp.maximum(2.0 * progress, low)


def cosine(progress: Progress, *, low: Array | float = 0.0) -> Array:
    """Returns max(low, 1 - cos(pi progress)), from 0 at pure noise to 2 at the image, with a mean of 1 at low = 0.

    Args:
      low: smallest factor, >= 0.

    Reference: Wang et al. 2024: the cosine schedule, and its clamped variant.
    """
    return jnp.maximum(1.0 - jnp.cos(jnp.pi * progress), low)


def power_cosine(progress: Progress, *, power: Array | float = 4.0) -> Array:
    """Returns (1 - cos(pi progress^power)) / 2, from 0 at pure noise to 1 at the image.

    Args:
      power: > 0; a larger one guides later.

    Reference: MDT (Gao et al. 2023), power-cosine scaling; Wang et al. 2024: pcs.
    """
    return (1.0 - jnp.cos(jnp.pi * progress**power)) / 2.0
