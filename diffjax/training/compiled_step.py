"""The training step of a config, compiled for devices; and the state that it begins with."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from diffjax.cluster import multihost
from diffjax.runs.checkpoints import Checkpoints
from diffjax.runs.state import TrainState, initial_state
from diffjax.training.optimizers import adam, learning_rate_schedule
from diffjax.training.sharding import Devices
from diffjax.training.step import Step, make_step
from diffjax.typing import Batch, PRNGKey, System


def learning_rates(config) -> dict[str, optax.Schedule]:
    """Returns the learning rate by step, of `train` ("") and of each section of it for a group of parameters."""
    groups = [name for name, value in config.train.items() if isinstance(value, ConfigDict)]
    return {group: _learning_rate(config, group) for group in ["", *groups]}


def _settings(config, group: str) -> dict[str, Any]:
    """The fields of `train` for a group of parameters: its own section's before the others."""
    return {**config.train, **config.train.get(group, {})}


def _learning_rate(config, group: str) -> optax.Schedule:
    c = _settings(config, group)
    return learning_rate_schedule(
        c["schedule"], c["learning_rate"], warmup_steps=c["warmup_steps"], total_steps=c["steps"]
    )


def make_optimizers(config, system: System) -> dict[str, optax.GradientTransformation]:
    """The optimiser of each of the system's groups of parameters: fields of `train`, or of its section for a group."""

    def optimizer(group: str) -> optax.GradientTransformation:
        c = _settings(config, group)
        return adam(
            _learning_rate(config, group), **{name: c[name] for name in ("clip_norm", "weight_decay", "beta1", "beta2")}
        )

    return {group: optimizer(group) for group in system.objective.losses}


def compile_step(
    config,
    system: System,
    optimizers: dict[str, optax.GradientTransformation],
    devices: Devices,
    examples: int,
    checkpoints: Checkpoints | None = None,
) -> tuple[Step, TrainState]:
    """The compiled training step of a config on a data set of `examples`, and its first state.

    That is the state of the last of `checkpoints`, or a fresh one.
    """
    init_key, _ = keys_of_run(config)
    init = functools.partial(initial_state, system.objective, optimizers)
    shapes = jax.eval_shape(init, init_key)
    devices.check_state(shapes)
    sharding = devices.state_sharding(shapes)
    if checkpoints is None:
        state = compile_init(init, sharding)(init_key)
    else:
        state = checkpoints.restore(_laid_out(shapes, sharding))
    return _jitted(config, system, optimizers, devices, examples, shapes), state


def compile_init(init: Callable[[PRNGKey], TrainState], sharding) -> Callable[[PRNGKey], TrainState]:
    """Compiled for the few times that it runs: on a CPU optimising it would take seconds longer than it saves."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=sharding, compiler_options=options)


def lower_step(config, system: System, devices: Devices, batch: Batch, examples: int) -> jax.stages.Lowered:
    """The training step of a config, lowered for `devices` of which none need be there: nothing is computed.

    Leaves of `batch`, a global one, and of `system.frozen` may be jax.ShapeDtypeStruct.
    """
    optimizers = make_optimizers(config, system)
    shapes = jax.eval_shape(functools.partial(initial_state, system.objective, optimizers), keys_of_run(config)[0])
    frozen = jax.eval_shape(lambda tree: tree, system.frozen)
    return _jitted(config, system, optimizers, devices, examples, shapes).lower(shapes, batch, frozen)


def keys_of_run(config) -> tuple[PRNGKey, PRNGKey]:
    """Of the initial state, and of the steps."""
    return jax.random.split(jax.random.key(config.seed))


def _laid_out(shapes, sharding):
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, sharding
    )


def _jitted(config, system: System, optimizers, devices: Devices, examples: int, shapes) -> Step:
    make = functools.partial(
        make_step,
        system.objective,
        optimizers,
        key=keys_of_run(config)[1],
        ema_decay=config.train.ema_decay,
        examples=examples,
        accumulate=config.train.accumulate,
        skip_limit=config.train.get("skip_limit", 0),
    )
    return devices.compile(make, shapes)


def prepared(system: System, state: TrainState, batch: Batch, devices: Devices | None = None) -> TrainState:
    """A fresh state whose variables the system has fitted to its first batch, the whole of it."""
    own = devices.on_host(state.variables) if devices else state.variables
    variables = dict(system.objective.prepare({**own, "frozen": system.frozen}, batch))
    del variables["frozen"]
    fresh = {"variables": variables, "ema": variables["params"]}  # two copies: the state is donated
    shardings = jax.tree.map(lambda leaf: leaf.sharding, {"variables": state.variables, "ema": state.ema})
    return state.replace(**jax.tree.map(lambda leaf, where: multihost.put(np.array(leaf), where), fresh, shardings))


def memory_advice(config, devices: Devices) -> str:
    """What makes a training step smaller."""
    c = config.train
    return (
        f"a step has train.batch_size={c.batch_size} in train.accumulate={c.accumulate} parts and "
        f"parallel.fsdp={config.parallel.fsdp} on {devices.count} devices: lower train.batch_size, raise "
        "train.accumulate, or raise parallel.fsdp where there are more devices"
    )
