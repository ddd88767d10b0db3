"""The training step of a config: its optimisers, compiled for devices, and the initial or restored state."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from diffjax.cluster import multihost
from diffjax.errors import UserError, validate_integer
from diffjax.models import width_transfer
from diffjax.models.base import Model
from diffjax.models.parameter_paths import check_patterns, flatten, matches, path_of
from diffjax.progress import compiling
from diffjax.runs.checkpoints import Checkpoints
from diffjax.runs.state import TrainState, initial_state
from diffjax.training.optimization import learning_rate_schedule, make_optimizer
from diffjax.training.sharding import Devices
from diffjax.training.step import Step, make_step
from diffjax.typing import Batch, PRNGKey

Optimizers = Mapping[str, optax.GradientTransformation]  # by group of parameters


def learning_rates(config: ConfigDict) -> dict[str, optax.Schedule]:
    """Returns the learning rate schedules: of `train` as "", and of each of its sections for a group of parameters."""
    groups = [name for name, value in config.train.items() if isinstance(value, ConfigDict) and name != "lora"]
    return {group: _learning_rate(config, group) for group in ["", *groups]}


def _settings(config: ConfigDict, group: str) -> dict[str, Any]:
    """Returns the fields of `train`, overridden by those of its section for a group of parameters."""
    return {**config.train, **config.train.get(group, {})}


def _learning_rate(config: ConfigDict, group: str) -> optax.Schedule:
    c = _settings(config, group)
    return learning_rate_schedule(
        c["learning_rate_schedule"], c["learning_rate"], warmup_steps=c["warmup_steps"], total_steps=c["steps"]
    )


def make_optimizers(config: ConfigDict, model: Model) -> Optimizers:
    """Returns the optimiser of each group of parameters, from the fields of `train` or of its section for the group.

    Frozen parameters have no optimiser state.
    """
    trained, every = trained_parameters(config, model), update_every(config, model)
    base = width_transfer.base_model(config, model)
    factors = width_transfer.rate_factors(model, base) if base else {}

    def optimizer(group: str) -> optax.GradientTransformation:
        rate = _learning_rate(config, group)
        updates = lambda count: rate(count * every[group])  # noqa: E731
        transformation = make_optimizer(_settings(config, group), updates, factors.get(group))
        return optax.masked(transformation, trained[group]) if trained else transformation

    return {group: optimizer(group) for group in model.losses}


def update_every(config: ConfigDict, model: Model) -> dict[str, int]:
    """Returns the steps per update of each group of parameters: `update_every` of its section of `train`, else 1.

    Raises:
      UserError: a number is not positive, or no group is updated in every step.
    """
    every = {
        group: validate_integer(f"train.{group}.update_every", config.train.get(group, {}).get("update_every", 1))
        for group in model.losses
    }
    if every and min(every.values()) > 1:
        group = min(every, key=lambda group: every[group])
        raise UserError(f"train.{group}.update_every={every[group]}: must be 1 for at least one group; set it to 1")
    return every


def trained_parameters(config: ConfigDict, model: Model) -> Mapping[str, Any] | None:
    """Returns which parameters `train.freeze` leaves trained.

    Returns:
      A tree of booleans for each group of parameters, with the structure of its parameters; None: all are trained.

    Raises:
      UserError: a pattern matches no parameter, or no parameter is left to train.
    """
    patterns = config.train.get("freeze", ())
    if not patterns:
        return None
    params = model.variable_shapes["params"]
    check_patterns("train.freeze", patterns, flatten(params))
    trained = jax.tree_util.tree_map_with_path(lambda keys, _: not matches(path_of(keys), patterns), params)
    if not any(jax.tree.leaves(trained)):
        raise UserError(f"train.freeze={patterns}: matches all parameters; leave some to train")
    return trained


def compile_step(
    config: ConfigDict,
    model: Model,
    optimizers: Optimizers,
    devices: Devices,
    examples: int,
    checkpoints: Checkpoints | None = None,
) -> tuple[Step, TrainState]:
    """Compiles the training step of a config, and creates or restores the training state.

    Args:
      examples: number of examples of the data set.
      checkpoints: restore the state of their newest one; None: create a new state.

    Returns:
      The step, which compiles at its first call, and the state, laid out over the devices.

    Raises:
      UserError: the state does not fit on the devices, or the checkpoint does not fit the model.
    """
    init_key, _ = init_and_step_keys(config)
    init = _initial_state(config, model, optimizers)
    shapes = jax.eval_shape(init, init_key)
    devices.check_state(shapes)
    sharding = devices.state_sharding(shapes)
    if checkpoints is None:
        with compiling("the initial state"):
            state = compile_init(init, sharding)(init_key)
    else:
        state = checkpoints.restore(_with_sharding(shapes, sharding))
    return _compile(config, model, optimizers, devices, examples, shapes), state


def _initial_state(config: ConfigDict, model: Model, optimizers: Optimizers) -> Callable[[PRNGKey], TrainState]:
    lengths, base = config.train.get("ema_lengths", ()), width_transfer.base_model(config, model)
    init = functools.partial(width_transfer.initial_variables, model, base) if base else None
    return functools.partial(initial_state, model, optimizers, ema_lengths=lengths, init=init)


def compile_init(init: Callable[[PRNGKey], TrainState], sharding: Any) -> Callable[[PRNGKey], TrainState]:
    """Compiles `init`, on a CPU without optimisations, which would take seconds longer than they save."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=sharding, compiler_options=options)


def lower_step(config: ConfigDict, model: Model, devices: Devices, batch: Batch, examples: int) -> jax.stages.Lowered:
    """Lowers the training step of a config for `devices`, which need not exist. Computes nothing.

    Args:
      batch: a global batch; its leaves, and those of `model.frozen`, may be jax.ShapeDtypeStruct.
      examples: number of examples of the data set.
    """
    optimizers = make_optimizers(config, model)
    shapes = jax.eval_shape(_initial_state(config, model, optimizers), init_and_step_keys(config)[0])
    frozen = jax.eval_shape(lambda tree: tree, model.frozen)
    return _compile(config, model, optimizers, devices, examples, shapes).lower(shapes, batch, frozen)


def step_flops(config: ConfigDict, lowered: jax.stages.Lowered) -> float:
    """Returns the floating-point operations of a training step, as XLA counts them; 0: it does not.

    XLA counts a loop's body once, and the parts of `train.accumulate` are a loop.
    """
    return config.train.accumulate * (lowered.cost_analysis() or {}).get("flops", 0.0)


def init_and_step_keys(config: ConfigDict) -> tuple[PRNGKey, PRNGKey]:
    """Returns the random keys of the initial state and of the training steps."""
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    return init_key, step_key


def fit_to_first_batch(
    model: Model, state: TrainState, batch: Mapping[str, Any], devices: Devices | None = None
) -> TrainState:
    """Returns a new state whose variables the model has fitted to its first batch.

    Args:
      batch: the global batch, in the memory of every process.
      devices: devices of the state; None: the state is on one device.
    """
    prepare = model.prepare
    if prepare is None or not needs_first_batch(model):
        return state
    host_variables = devices.on_host(state.variables) if devices else state.variables
    variables = dict(prepare({**host_variables, "frozen": model.frozen}, batch))
    del variables["frozen"]
    fitted = {"variables": variables, "ema": variables["params"]}  # two copies, since training donates the state
    shardings = jax.tree.map(lambda leaf: leaf.sharding, {"variables": state.variables, "ema": state.ema})
    return state.replace(**jax.tree.map(lambda leaf, place: multihost.put(np.array(leaf), place), fitted, shardings))


def needs_first_batch(model: Model) -> bool:
    """Returns whether a model fits its variables to the first batch, such as a codebook."""
    return model.fits_first_batch if isinstance(model, Model) else model.prepare is not None


def memory_advice(config: ConfigDict, devices: Devices) -> str:
    """Returns advice on how to reduce the memory of a training step, for an error message."""
    c = config.train
    return (
        f"a step has train.batch_size={c.batch_size} in train.accumulate={c.accumulate} parts and "
        f"parallel.fsdp={config.parallel.fsdp} on {devices.num_devices} devices; lower train.batch_size, raise "
        "train.accumulate, or raise parallel.fsdp if there are more devices"
    )


def _with_sharding(shapes: TrainState, sharding: Any) -> TrainState:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, sharding
    )


def _compile(
    config: ConfigDict,
    model: Model,
    optimizers: Optimizers,
    devices: Devices,
    examples: int,
    shapes: TrainState,
) -> Any:
    make = functools.partial(
        make_step,
        model,
        optimizers,
        learning_rates={group: _learning_rate(config, group) for group in model.losses},
        key=init_and_step_keys(config)[1],
        ema_decay=config.train.ema_decay,
        ema_lengths=config.train.get("ema_lengths", ()),
        examples=examples,
        accumulate=config.train.accumulate,
        max_consecutive_skips=config.train.get("max_consecutive_skips", 0),
        trained=trained_parameters(config, model),
        update_every=update_every(config, model),
    )
    return devices.compile(make, shapes)
