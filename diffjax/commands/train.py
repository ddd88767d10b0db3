"""Train the system of a config, or continue a run.

  python launch.py train --config=configs/digits.py --workdir=runs/digits [--config.train.steps=2000 ...]

Running the same command again continues from the last checkpoint, so does --workdir alone. SIGTERM and Ctrl-C save
first; the exit code is then 128 + the signal's number.
"""

import functools

import jax
import optax
from absl import flags as absl_flags

from diffjax import data, pictures, systems
from diffjax.commands.flags import Arguments, Flags, define_config, define_workdir, read_config, required
from diffjax.generate import Generator, balanced_labels
from diffjax.train import loop
from diffjax.train.checkpoints import Checkpoints
from diffjax.train.devices import Devices
from diffjax.train.metrics import MetricsLog
from diffjax.train.optimizers import adam, learning_rate_schedule
from diffjax.train.state import TrainState, ema_variables, initial_state
from diffjax.train.step import Step, make_step
from diffjax.typing import System
from diffjax.workdir import Workdir, image_spec, open_source


def define(flags: Flags) -> None:
    define_config(flags)
    define_workdir(flags)
    absl_flags.DEFINE_boolean(
        "overwrite", False, "continue a run with another config than it was started with", flag_values=flags
    )


def run(arguments: Arguments) -> int:
    workdir = Workdir(required(arguments, "workdir"))
    config = read_config(arguments, workdir.read_config() if workdir.config.exists() else None)
    spec = image_spec(config)
    system = systems.build(config, spec)
    devices = Devices.create(**config.parallel)
    devices.check_batch(config.train.batch_size, config.train.accumulate)
    optimizers = make_optimizers(config, system)
    source = open_source(config, config.data.split)
    batches = data.Batches(source, batch_size=config.train.batch_size, seed=config.seed, flip=config.data.flip)

    workdir.create()  # what is wrong with the config has been said by now
    checkpoints = Checkpoints(workdir.checkpoints, keep_last=config.train.keep_last, keep_every=config.train.keep_every)
    start = checkpoints.latest_step() or 0
    if start and not arguments.overwrite:
        workdir.check_config(config)
    if start >= config.train.steps:
        print(f"{workdir.path} is trained to step {start}; to go on, raise --config.train.steps")
        return 0
    step, state = compile_step(config, system, optimizers, devices, checkpoints if start else None)
    workdir.write_config(config)  # only now: the checkpoint may not fit it
    log = MetricsLog(workdir.path, start)
    _announce(config, state, len(source), devices, start)
    try:
        _, stopped = loop.run(
            step,
            state,
            data.prefetch(batches.iterate(start), devices.put_batch),
            start=start,
            schedule=loop.Schedule(
                **{name: config.train[name] for name in ("steps", "log_every", "sample_every", "checkpoint_every")}
            ),
            batch_size=config.train.batch_size,
            log=log,
            checkpoints=checkpoints,
            preview=_preview(config, system, workdir, log),
        )
    finally:
        checkpoints.close()
        log.close()
    if stopped:
        print(f"stopped by signal {stopped} after saving; the same command continues")
        return 128 + stopped
    _say_what_next(workdir, config, system)
    return 0


def make_optimizers(config, system: System) -> dict[str, optax.GradientTransformation]:
    """The optimiser of each of the system's groups of parameters."""
    c = config.train
    rate = learning_rate_schedule(c.schedule, c.learning_rate, warmup_steps=c.warmup_steps, total_steps=c.steps)
    optimizer = adam(rate, clip_norm=c.clip_norm, weight_decay=c.weight_decay, beta2=c.beta2)
    return dict.fromkeys(system.objective.losses, optimizer)


def compile_step(
    config,
    system: System,
    optimizers: dict[str, optax.GradientTransformation],
    devices: Devices,
    checkpoints: Checkpoints | None = None,
) -> tuple[Step, TrainState]:
    """The compiled training step of a config, and its first state: that of the last checkpoint, or a fresh one."""
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
        accumulate=config.train.accumulate,
    )
    return devices.compile(make, shapes), state


def _preview(config, system: System, workdir: Workdir, log: MetricsLog):
    """Draws a grid with the averaged parameters; where there are classes, a column each."""
    count = config.train.sample_count
    if not count or system.sample is None:
        return lambda step, state: None
    generator = Generator(system, batch_size=count)
    labels = balanced_labels(count, system.classes)
    columns = pictures.class_columns(system.classes, count)

    def preview(step: int, state: TrainState) -> None:
        images = generator(ema_variables(state), range(count), {"label": labels}, system.plan(config.sampler))
        sheet = pictures.grid(images, columns)
        pictures.save(workdir.samples / f"step_{step:08d}.png", sheet)
        log.image(step, "samples", sheet)

    return preview


def _announce(config, state: TrainState, examples: int, devices: Devices, start: int) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.variables["params"]))
    print(
        f"{config.system} on {config.data.name}: {parameters:,} parameters, {examples:,} examples, "
        f"{devices.count} {jax.default_backend()} device{'s' * (devices.count > 1)} ({devices.mode})"
        + (f", continuing at step {start}" if start else "")
    )


def _say_what_next(workdir: Workdir, config, system: System) -> None:
    grids = sorted(workdir.samples.glob("step_*.png"))
    print(f"trained to step {config.train.steps}" + (f"; samples in {grids[-1]}" if grids else ""))
    print("try next:")
    if system.classify:
        print(f"  python launch.py evaluate --workdir={workdir.path} --metrics=accuracy")
        print(f"  python launch.py sweep --workdir=RUN --classifier={workdir.path} --classifier_scale=0,1,2")
    else:
        print(f"  python launch.py sample --workdir={workdir.path} --out=samples.png --num=100")
        print(f"  python launch.py sweep --workdir={workdir.path} --steps=5,10,20,50,100 --eta=0,1")
