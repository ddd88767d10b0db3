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


def deviation(health: Health, losses: Mapping[str, Scalar], is_due: Mapping[str, Array] = {}) -> Scalar:
    """Returns the largest (loss - mean) / standard deviation over the groups; 0 for the first 100 updates.

    Args:
      is_due: whether groups that are not updated in every step are updated in this one; others are left out.
    """
    deviations = [
        jnp.where(
            is_due.get(group, True),
            (loss - health.mean[group]) / jnp.sqrt(jnp.maximum(health.variance[group], 1e-12)),
            -jnp.inf,
        )
        for group, loss in losses.items()
    ]
    return jnp.where(health.updates < _MIN_UPDATES, 0.0, jnp.stack(deviations).max())


def record_update(health: Health, losses: Mapping[str, Scalar], is_due: Mapping[str, Array] = {}) -> Health:
    """Returns the health after an update: exponential moments with the decay min(0.99, n / (10 + n)) at update n.

    Args:
      is_due: as for `deviation`; the moments of groups that are not due are unchanged.
    """
    rate = 1 - jnp.minimum(_DECAY, health.updates / (10.0 + health.updates))
    difference = {group: loss - health.mean[group] for group, loss in losses.items()}

    def updated(group: str, new: Array, old: Array) -> Array:
        return jnp.where(is_due[group], new, old) if group in is_due else new

    return health.replace(
        consecutive_skips=jnp.zeros_like(health.consecutive_skips),
        updates=health.updates + 1,
        mean={group: updated(group, mean + rate * difference[group], mean) for group, mean in health.mean.items()},
        variance={
            group: updated(group, (1 - rate) * (variance + rate * difference[group] ** 2), variance)
            for group, variance in health.variance.items()
        },
    )


def record_skip(health: Health) -> Health:
    """Returns the health after a skipped step."""
    return health.replace(skipped=health.skipped + 1, consecutive_skips=health.consecutive_skips + 1)
