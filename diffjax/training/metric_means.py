"""Means of the metrics of steps between two lines of the log, accumulated on the device."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array

from diffjax.training.step import Metrics

_STATE = "consecutive_skips"  # of a step: whether it was skipped; not logged
_UPDATED = "is_updated"  # of a group of parameters: whether the step updated it; not logged
_LARGEST, _LATEST = "loss_deviation", ("skipped", "learning_rate")


class MetricMeans:
    """Means of metrics since the last call of `read`, over the steps that were not skipped and updated the group.

    "loss_deviation" is the largest one; "skipped" and learning rates are those of the last step.
    """

    def __init__(self):
        self._sums: Mapping[str, Any] | None = None

    def add(self, metrics: Metrics) -> None:
        """Adds the metrics of a step: scalars on the device, which are not waited for."""
        self._sums = _add(self._sums, metrics)

    def read(self) -> dict[str, float]:
        """Returns the means, and starts new ones. They are nan without an update; {} without any step."""
        if self._sums is None:
            return {}
        sums, self._sums = jax.device_get(self._sums), None
        counts = {name: int(sums["updates"][_counter(name, sums["updates"])]) for name in sums["sums"]}
        means = {
            name: float(value) / counts[name] if counts[name] else float("nan") for name, value in sums["sums"].items()
        }
        values = means | {name: float(value) for name, value in (sums["largest"] | sums["latest"]).items()}
        return dict(sorted(values.items(), key=lambda item: not item[0].endswith("loss")))  # losses first


@jax.jit
def _add(sums: Mapping[str, Any] | None, metrics: Metrics) -> Mapping[str, Any]:
    is_update = metrics.get(_STATE, jnp.zeros((), jnp.int32)) == 0
    latest = {name: value for name, value in metrics.items() if name.rpartition("/")[2] in _LATEST}
    largest = {name: jnp.where(is_update, value, -jnp.inf) for name, value in metrics.items() if name == _LARGEST}
    updates = {"": is_update} | {
        name.removesuffix(_UPDATED): is_update & (value > 0)
        for name, value in metrics.items()
        if name.endswith(_UPDATED)
    }
    averaged = {
        name: value
        for name, value in metrics.items()
        if name not in latest and name not in (_LARGEST, _STATE) and not name.endswith(_UPDATED)
    }
    # A skipped step's metrics may be nan, so they are replaced, not multiplied by 0.
    new = {
        "updates": {prefix: value.astype(jnp.int32) for prefix, value in updates.items()},
        "sums": {name: _zero_unless(updates[_counter(name, updates)], value) for name, value in averaged.items()},
    }
    if sums is not None:
        new = jax.tree.map(jnp.add, {name: sums[name] for name in new}, new)
        largest = jax.tree.map(jnp.maximum, sums["largest"], largest)
    return new | {"largest": largest, "latest": latest}


def _counter(name: str, prefixes: Collection[str]) -> str:
    """Returns the prefix of a metric's group if its updates are counted apart, else ''."""
    prefix = "".join(name.rpartition("/")[:2])
    return prefix if prefix in prefixes else ""


def _zero_unless(is_update: Array, value: Array) -> Array:
    return jnp.where(is_update, value, 0).astype(jnp.float32)
