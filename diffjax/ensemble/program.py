"""The program of several members: which may share one, their states, and their step."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from diffjax.data.pipeline import HostBatch
from diffjax.diffusion.levels import Discrete
from diffjax.errors import UserError
from diffjax.models.diffusion.process import make_schedule
from diffjax.runs.checkpoints import Checkpoints
from diffjax.runs.config_files import flatten
from diffjax.runs.loading import build_system
from diffjax.runs.state import TrainState, initial_state
from diffjax.training.compiled_step import compile_init, keys_of_run, make_optimizers, prepared
from diffjax.training.sharding import Devices
from diffjax.training.step import Step, make_step
from diffjax.typing import Batch, PRNGKey, System

_RATES = ("learning_rate", "weight_decay", "ema_decay", "beta1", "beta2")  # of `train`, or of its section for a group
_SCHEDULE = "diffusion.schedule"
# Axes of the state: the number of updates is one for all members, so that what it decides is decided once.
_AXES = TrainState(step=None, variables=0, ema=0, optimizer=0, health=0)


def differing_fields(configs: Sequence[ConfigDict]) -> list[str]:
    """The dotted names of the fields in which configs differ."""
    first, *others = map(flatten, configs)
    names = sorted(set(first).union(*others))
    return [name for name in names if any(first.get(name) != other.get(name) for other in others)]


def can_train_together(configs: Sequence[ConfigDict]) -> bool:
    """Whether `train_together` takes them; if not, they are to be trained one by one."""
    try:
        check_together(configs)
    except UserError:
        return False
    return True


def check_together(configs: Sequence[ConfigDict]) -> None:
    """Raises UserError, naming a field, for configs that cannot be trained together."""
    for name in differing_fields(configs):
        if not _may_differ(name, configs):
            raise UserError(
                f"runs that differ in {name} are trained one by one; together those that differ in the seed, "
                f"{', '.join(f'train.{rate}' for rate in _RATES)}, weights of the loss, or discrete schedules"
            )
    if any(config.get("parts") for config in configs):
        raise UserError("runs that stand on parts are trained one by one")
    parallel = configs[0].parallel
    if parallel.mode != "jit" or parallel.fsdp > 1:
        raise UserError("runs are trained together with parallel.mode='jit' and parallel.fsdp=1 only")


def _may_differ(name: str, configs: Sequence[ConfigDict]) -> bool:
    if name == _SCHEDULE:
        return all(isinstance(make_schedule(config.diffusion), Discrete) for config in configs)
    section, field = name.split(".")[0], name.split(".")[-1]
    enters = section == "loss" or (section == "train" and field in _RATES)
    return name == "seed" or (enters and all(isinstance(flatten(config).get(name), float) for config in configs))


def distinct_seeds(configs: Sequence[ConfigDict]) -> list[int]:
    """The members' seeds; where all are equal that one alone: batches and noise are then the same for all."""
    seeds = [config.seed for config in configs]
    return seeds if len(set(seeds)) > 1 else seeds[:1]


def fresh_state(
    configs: Sequence[ConfigDict], system: System, devices: Devices, batches: Sequence[HostBatch]
) -> TrainState:
    """The members' first states, stacked. `system` is any one's, `batches` the first of each of `distinct_seeds`."""
    init = compile_init(_init(configs[0], system), NamedSharding(devices.mesh, P()))
    states = [init(keys_of_run(config)[0]) for config in configs]
    if system.objective.prepare:
        each = list(batches) * (len(configs) // len(batches))
        states = [prepared(system, *own) for own in zip(states, each, strict=True)]
    return _stacked(states, devices)


def restored_state(
    configs: Sequence[ConfigDict], system: System, devices: Devices, checkpoints: Sequence[Checkpoints], step: int
) -> TrainState:
    """The members' states at `step` of their checkpoints, stacked."""
    shapes, where = jax.eval_shape(_init(configs[0], system), jax.random.key(0)), NamedSharding(devices.mesh, P())
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes)
    return _stacked([saved.restore(template, step) for saved in checkpoints], devices)


def compile_together(
    configs: Sequence[ConfigDict], devices: Devices, examples: int
) -> tuple[Step, Callable[[Sequence[HostBatch]], Batch]]:
    """The compiled step of all members on a data set of `examples`, and what puts their batches on the devices.

    The step is that of one run, with metrics [M] and a state whose leaves, but for `step`, are [M, ...]. Batches are
    one for each of `distinct_seeds`.
    """
    numbers = {name: _numbers(name, configs) for name in differing_fields(configs) if name != "seed"}
    keys = [keys_of_run(config)[1] for config in configs]

    def member(key, numbers, state, batch, frozen):
        config = _with_numbers(configs[0], numbers)
        with jax.ensure_compile_time_eval():  # to build is to check numbers, and these are no part of the program
            system = build_system(config, training=True)
        step = make_step(
            system.objective,
            make_optimizers(config, system),
            key=key,
            ema_decay=config.train.ema_decay,
            examples=examples,
            accumulate=config.train.accumulate,
            skip_limit=config.train.get("skip_limit", 0),
        )
        return step(state, batch, frozen)

    alike = len(distinct_seeds(configs)) == 1
    own, key = (None, keys[0]) if alike else (0, jnp.stack(keys))
    together = jax.vmap(member, in_axes=(own, 0, _AXES, own, None), out_axes=(_AXES, 0), axis_size=len(configs))
    whole, axes = NamedSharding(devices.mesh, P()), devices.mesh.axis_names
    split = NamedSharding(devices.mesh, P(axes) if alike else P(None, axes))
    compiled = jax.jit(
        together, donate_argnums=2, in_shardings=(whole, whole, whole, split, whole), out_shardings=whole
    )

    def put(batches):
        batch = batches[0] if alike else jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        return jax.device_put(batch, split)

    return functools.partial(compiled, key, devices.put_everywhere(numbers)), put


def _init(config: ConfigDict, system: System) -> Callable[[PRNGKey], TrainState]:
    return functools.partial(initial_state, system.objective, make_optimizers(config, system))


def _stacked(states: Sequence[TrainState], devices: Devices) -> TrainState:
    """Laid out as `_AXES`."""
    state = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(states))
    return devices.put_everywhere(state.replace(step=state.step[0]))


def _numbers(name: str, configs: Sequence[ConfigDict]):
    """What members have in a field, float32 [M]; of a schedule its tables, [M, T + 1] each."""
    if name == _SCHEDULE:
        tables = [make_schedule(config.diffusion).tables for config in configs]
        return jax.tree.map(lambda *own: np.stack(own).astype(np.float32), *tables)
    return np.array([flatten(config)[name] for config in configs], np.float32)


def _with_numbers(config: ConfigDict, numbers: Mapping[str, Any]) -> ConfigDict:
    """`config` with what one member has in some fields, which may be traced."""
    made = ConfigDict(config.to_dict())
    values = dict(numbers)
    if _SCHEDULE in values:
        values[_SCHEDULE] = Discrete(config.diffusion.timesteps, values[_SCHEDULE])
        made.sampler = {"name": "ddim", "steps": 1}  # training draws no samples, and other grids ask for levels
    with made.ignore_type():
        made.update_from_flattened_dict(values)
    return made
