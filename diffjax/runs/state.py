"""The training state. With the config's seed it determines how a run continues."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.struct
import jax
import optax
from jax import numpy as jnp

from diffjax.models.base import Model
from diffjax.runs.power_functions import name_of
from diffjax.typing import PRNGKey, Scalar, Variables


class Health(flax.struct.PyTreeNode):
    """Counts of steps, and running moments of losses, for the detection of non-finite steps and spikes.

    Attributes:
      skipped: int32, number of skipped steps.
      consecutive_skips: int32, number of skipped steps since the last update.
      updates: int32, number of steps that were not skipped.
      mean: running mean of the loss of each group of parameters.
      variance: running variance of the loss of each group.
    """

    skipped: Scalar
    consecutive_skips: Scalar
    updates: Scalar
    mean: Mapping[str, Scalar]
    variance: Mapping[str, Scalar]


def initial_health(groups: Iterable[str]) -> Health:
    """Returns zeros, each in a buffer of its own, since training donates the state."""
    groups = tuple(groups)
    skipped, consecutive_skips, updates = (jnp.zeros((), jnp.int32) for _ in range(3))
    mean, variance = ({group: jnp.zeros(()) for group in groups} for _ in range(2))
    return Health(skipped, consecutive_skips, updates, mean, variance)


class TrainState(flax.struct.PyTreeNode):
    """All arrays that training changes.

    Attributes:
      step: int32, number of steps so far, skipped ones included.
      ema: exponential moving average of variables["params"], float32.
      optimizer: optimiser state of each group of parameters.
      power_ema: power-function averages of variables["params"], by name of their length (`power_functions.name_of`).
    """

    step: Scalar
    variables: Variables
    ema: Mapping[str, Any]
    optimizer: Mapping[str, optax.OptState]
    health: Health
    power_ema: Mapping[str, Any] = flax.struct.field(default_factory=dict)


def initial_state(
    model: Model,
    optimizers: Mapping[str, optax.GradientTransformation],
    key: PRNGKey,
    *,
    ema_lengths: Iterable[float] = (),
    init: Callable[[PRNGKey], Variables] | None = None,
) -> TrainState:
    """Returns the state before the first step. Consumes `key`.

    Args:
      init: returns fresh variables; None: `model.init`.
    """
    variables = (init or model.init)(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        ema=jax.tree.map(jnp.copy, variables["params"]),  # copied, since training donates the state
        optimizer={group: opt.init(variables["params"][group]) for group, opt in optimizers.items()},
        health=initial_health(optimizers),
        power_ema={name_of(length): jax.tree.map(jnp.copy, variables["params"]) for length in ema_lengths},
    )


def ema_variables(state: TrainState) -> Variables:
    """Returns the variables for sampling: averaged parameters, and the other collections."""
    return {**state.variables, "params": state.ema}
