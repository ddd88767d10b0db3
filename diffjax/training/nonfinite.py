"""Whether a step was sound, and how far its losses stand from those before it. A part of the training state."""

from collections.abc import Mapping

import jax
from jax import numpy as jnp

from diffjax.runs.state import Health
from diffjax.typing import Scalar

_DECAY = 0.99  # of the losses' running moments
_WARM = 100  # steps that they have seen before a deviation is told


def is_finite(values) -> Scalar:
    """Whether all numbers of a pytree of arrays are: bool []."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(values)]).all()


def deviation(health: Health, losses: Mapping[str, Scalar]) -> Scalar:
    """The largest of (loss - mean) / standard deviation over the groups; 0 while there are too few to tell."""
    each = [
        (loss - health.mean[group]) / jnp.sqrt(jnp.maximum(health.variance[group], 1e-12))
        for group, loss in losses.items()
    ]
    return jnp.where(health.sound < _WARM, 0.0, jnp.stack(each).max())


def after_sound(health: Health, losses: Mapping[str, Scalar]) -> Health:
    """Once a step was made. Its losses enter exponential moments, corrected while they are young."""
    rate = 1 - jnp.minimum(_DECAY, health.sound / (10.0 + health.sound))
    away = {group: loss - health.mean[group] for group, loss in losses.items()}
    return health.replace(
        in_a_row=jnp.zeros_like(health.in_a_row),
        sound=health.sound + 1,
        mean={group: health.mean[group] + rate * away[group] for group in losses},
        variance={group: (1 - rate) * (health.variance[group] + rate * away[group] ** 2) for group in losses},
    )


def after_skipped(health: Health) -> Health:
    return health.replace(skipped=health.skipped + 1, in_a_row=health.in_a_row + 1)
