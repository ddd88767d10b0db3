"""Training the system of a config, in a folder: what `launch.py train` and the experiments do."""

import functools

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from diffjax import data, pictures
from diffjax.generate import Generator, balanced_labels
from diffjax.train import loop
from diffjax.train.checkpoints import Checkpoints
from diffjax.train.devices import Devices
from diffjax.train.metrics import MetricsLog
from diffjax.train.optimizers import adam, learning_rate_schedule
from diffjax.train.state import TrainState, ema_variables, initial_state
from diffjax.train.step import Step, make_step
from diffjax.typing import Batch, System
from diffjax.workdir import Workdir, build_system, open_source

_SHOWN = 10  # images of a sheet of reconstructions


def train(config: ConfigDict, workdir: Workdir, *, overwrite: bool = False) -> tuple[System, int | None]:
    """Trains the system of a config in a folder, or goes on from its last checkpoint.

    Args:
      overwrite: continue a run that was started with another config.

    Returns:
      The system, and the signal that ended the run early or None.

    Raises:
      UserError: what does not exist, does not fit or is not there; a loss that is not finite.
    """
    system = build_system(config, training=True)
    devices = Devices.create(**config.parallel)
    devices.check_batch(config.train.batch_size, config.train.accumulate)
    optimizers = make_optimizers(config, system)
    source = open_source(config, config.data.split)
    batches = data.Batches(source, batch_size=config.train.batch_size, seed=config.seed, flip=config.data.flip)

    workdir.create()  # what is wrong with the config has been said by now
    checkpoints = Checkpoints(workdir.checkpoints, keep_last=config.train.keep_last, keep_every=config.train.keep_every)
    try:
        start = checkpoints.latest_step() or 0
        if start and not overwrite:
            workdir.check_config(config)
        if start >= config.train.steps:
            print(f"{workdir.path} is trained to step {start}; to go on, raise --config.train.steps")
            return system, None
        restored = checkpoints if start else None
        step, state = compile_step(config, system, optimizers, devices, len(source), restored)
        if not start and system.objective.prepare:
            state = prepared(system, state, batches.batch(0))
        frozen = devices.put_everywhere(system.frozen)
        workdir.write_config(config)  # only now: the checkpoint may not fit it
        log = MetricsLog(workdir.path, start)
        _announce(config, system, state, len(source), devices, start)
        try:
            _, stopped = loop.run(
                lambda state, batch: step(state, batch, frozen),
                state,
                data.prefetch(batches.iterate(start), devices.put_batch),
                start=start,
                schedule=loop.Schedule(
                    **{name: config.train[name] for name in ("steps", "log_every", "sample_every", "checkpoint_every")}
                ),
                batch_size=config.train.batch_size,
                log=log,
                checkpoints=checkpoints,
                preview=_preview(config, system, source, workdir, log),
                warn=system.objective.warn,
            )
        finally:
            log.close()
    finally:
        checkpoints.close()
    return system, stopped


def make_optimizers(config, system: System) -> dict[str, optax.GradientTransformation]:
    """The optimiser of each of the system's groups of parameters: fields of `train`, or of its section for a group."""

    def optimizer(group: str) -> optax.GradientTransformation:
        c = {**config.train, **config.train.get(group, {})}
        rate = learning_rate_schedule(
            c["schedule"], c["learning_rate"], warmup_steps=c["warmup_steps"], total_steps=c["steps"]
        )
        return adam(rate, **{name: c[name] for name in ("clip_norm", "weight_decay", "beta1", "beta2")})

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
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    init = functools.partial(initial_state, system.objective, optimizers)
    shapes = jax.eval_shape(init, init_key)
    sharding = devices.state_sharding(shapes)
    if checkpoints is None:
        # It runs once: on a CPU optimising the program would take seconds longer than it saves.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        state = jax.jit(init, out_shardings=sharding, compiler_options=options)(init_key)
    else:
        laid_out = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
        state = checkpoints.restore(jax.tree.map(laid_out, shapes, sharding))
    make = functools.partial(
        make_step,
        system.objective,
        optimizers,
        key=step_key,
        ema_decay=config.train.ema_decay,
        examples=examples,
        accumulate=config.train.accumulate,
    )
    return devices.compile(make, shapes), state


def prepared(system: System, state: TrainState, batch: Batch) -> TrainState:
    """A fresh state whose variables the system has fitted to its first batch."""
    variables = dict(system.objective.prepare({**state.variables, "frozen": system.frozen}, batch))
    del variables["frozen"]
    fresh = {"variables": variables, "ema": variables["params"]}  # two copies: the state is donated
    shardings = jax.tree.map(lambda leaf: leaf.sharding, {"variables": state.variables, "ema": state.ema})
    return state.replace(**jax.tree.map(lambda leaf, where: jax.device_put(np.array(leaf), where), fresh, shardings))


def _preview(config, system: System, source, workdir: Workdir, log: MetricsLog):
    """Draws sheets with the averaged parameters: samples, a column for each class if there are classes; and, of an
    autoencoder, training images over their reconstructions."""
    count = config.train.sample_count
    draws, reconstructs = system.sample is not None, system.codec is not None
    if not count:
        return lambda step, state: None
    generator = Generator(system, batch_size=count)
    labels = balanced_labels(count, system.classes)
    images = np.stack([example["image"] for example in source.__getitems__(range(min(count, _SHOWN, len(source))))])

    def preview(step: int, state: TrainState) -> None:
        variables = {**ema_variables(state), "frozen": system.frozen}
        sheets = {}
        if draws:
            drawn = generator(variables, range(count), {"label": labels}, system.plan(config.sampler))
            sheets["step"] = pictures.grid(drawn, pictures.class_columns(system.classes, count))
        if reconstructs:
            rows = np.concatenate([images, generator.reconstruct(variables, images)])
            sheets["reconstruction"] = pictures.grid(rows, len(images))
        for name, sheet in sheets.items():
            pictures.save(workdir.samples / f"{name}_{step:08d}.png", sheet)
            log.image(step, "samples" if name == "step" else name, sheet)

    return preview


def _announce(config, system: System, state: TrainState, examples: int, devices: Devices, start: int) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.variables["params"]))
    print(
        f"{config.system} on {config.data.name}: {parameters:,} parameters, {examples:,} examples, "
        f"{devices.count} {jax.default_backend()} device{'s' * (devices.count > 1)} ({devices.mode})"
        + (f", continuing at step {start}" if start else "")
        + (f"\n{system.objective.note}" if system.objective.note else "")
    )
