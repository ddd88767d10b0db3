"""Detects non-finite steps and loss spikes; the counts and running moments are stored in the training state."""

from collections.abc import Mapping
from typing import Any

import jax
from jax import Array
from jax import numpy as jnp

from diffjax.runs.state import Health
from diffjax.typing import Scalar

_DECAY = 0.99  # of the running moments of losses
_MIN_UPDATES = 100  # updates before deviations are computed


def is_finite(values: Any) -> Array:
    """Returns whether all numbers of a pytree of arrays are finite: bool []."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(values)]).all()


def deviation(health: Health, losses: Mapping[str, Scalar]) -> Scalar:
    """Returns the largest (loss - mean) / standard deviation over the groups; 0 for the first 100 updates."""
    deviations = [
        (loss - health.mean[group]) / jnp.sqrt(jnp.maximum(health.variance[group], 1e-12))
        for group, loss in losses.items()
    ]
    return jnp.where(health.updates < _MIN_UPDATES, 0.0, jnp.stack(deviations).max())


def record_update(health: Health, losses: Mapping[str, Scalar]) -> Health:
    """Returns the health after an update: exponential moments with the decay min(0.99, n / (10 + n)) at update n."""
    rate = 1 - jnp.minimum(_DECAY, health.updates / (10.0 + health.updates))
    difference = {group: loss - health.mean[group] for group, loss in losses.items()}
    return health.replace(
        consecutive_skips=jnp.zeros_like(health.consecutive_skips),
        updates=health.updates + 1,
        mean={group: health.mean[group] + rate * difference[group] for group in losses},
        variance={group: (1 - rate) * (health.variance[group] + rate * difference[group] ** 2) for group in losses},
    )


def record_skip(health: Health) -> Health:
    """Returns the health after a skipped step."""
    return health.replace(skipped=health.skipped + 1, consecutive_skips=health.consecutive_skips + 1)
