"""All that training changes. With the seed it is all that continuing needs."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.struct
import jax
import optax
from jax import numpy as jnp

from diffjax.typing import Objective, PRNGKey, Scalar, Variables


@flax.struct.dataclass
class Health:
    """What is remembered of the steps so far."""

    skipped: Scalar  # int32, steps that were skipped
    in_a_row: Scalar  # int32, the last ones of them
    sound: Scalar  # int32, the others
    mean: Mapping[str, Scalar]  # of the loss of each group
    variance: Mapping[str, Scalar]


def initial_health(groups: Iterable[str]) -> Health:
    def none():
        return jnp.zeros((), jnp.int32)  # a buffer each: the state is donated

    groups = tuple(groups)
    zeros = lambda: {group: jnp.zeros(()) for group in groups}  # noqa: E731
    return Health(skipped=none(), in_a_row=none(), sound=none(), mean=zeros(), variance=zeros())


@flax.struct.dataclass
class TrainState:
    """A pytree of arrays; `step` counts the steps made, those that were skipped too."""

    step: Scalar  # int32
    variables: Variables
    ema: Mapping[str, Any]  # exponential moving average of variables["params"], float32
    optimizer: Mapping[str, optax.OptState]  # one a group of parameters
    health: Health


def initial_state(
    objective: Objective, optimizers: Mapping[str, optax.GradientTransformation], key: PRNGKey
) -> TrainState:
    """The state before the first step (consumes `key`)."""
    variables = objective.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        ema=jax.tree.map(jnp.copy, variables["params"]),  # a copy: the state is donated, and no buffer twice
        optimizer={group: opt.init(variables["params"][group]) for group, opt in optimizers.items()},
        health=initial_health(optimizers),
    )


def ema_variables(state: TrainState) -> Variables:
    """The variables to sample with: averaged parameters, the other collections as they are."""
    return {**state.variables, "params": state.ema}
