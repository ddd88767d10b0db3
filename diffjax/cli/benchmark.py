"""Time a config's training step and its sampler on this machine.

  python launch.py benchmark --config=configs/digits.py [--steps=20] [--samples=100] [--config.train.batch_size=256 ...]
  python launch.py benchmark --config=configs/digits.py --members=4
  python launch.py benchmark --config=configs/ddpm_cifar10.py --communication=8,64,256 [--config.parallel.fsdp=8]

Uses random pictures, so the data set need not be there. GFLOP a step are counted in the program before it is
optimised; the fraction of peak is given where the device's peak is known. --members=M times, by turns, a step of M runs
of other seeds as one program and M steps of one run. Times vary from run to run. --communication compiles the step for
so many devices, none of which need be there, and prints what they tell one another in a step, and what each holds.
"""

import contextlib
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags as absl_flags
from ml_collections import ConfigDict

from diffjax import ensemble, io
from diffjax.cli.flags import Arguments, Flags, check_writable, define_config, number, read_config
from diffjax.cluster import collectives
from diffjax.errors import UserError, checked_whole, enough_memory, note
from diffjax.evaluation import provenance
from diffjax.inference.sampler_runner import Generator
from diffjax.runs.loading import blueprint, build_system, image_spec
from diffjax.runs.state import TrainState, ema_variables
from diffjax.training.compiled_step import compile_step, lower_step, make_optimizers, memory_advice
from diffjax.training.sharding import Devices
from diffjax.training.step import Step
from diffjax.typing import ImageSpec, System

# Dense peak of one device in TFLOP/s, from the vendors' data sheets: bfloat16, float32 (TF32 on NVIDIA's tensor cores).
_PEAK = {
    "H200": (989.0, 494.0),
    "H100": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "TPU v4": (275.0, None),
    "TPU v5 lite": (197.0, None),
    "TPU v5p": (459.0, None),
    "TPU v6 lite": (918.0, None),
}

_EXAMPLES = 50_000  # of the data set that random pictures stand for


def define(flags: Flags) -> None:
    define_config(flags)
    absl_flags.DEFINE_integer("steps", 20, "training steps to time", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer("samples", 100, "samples to draw, 0: none", lower_bound=0, flag_values=flags)
    absl_flags.DEFINE_integer("members", 1, "runs to train together, 1: none", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_list("communication", None, "numbers of devices to compile a step for", flag_values=flags)
    absl_flags.DEFINE_string("out", None, "JSON file to write the figures to", flag_values=flags)


def run(arguments: Arguments) -> int:
    if arguments.out:
        out = Path(arguments.out)
        if out.suffix != ".json":
            raise UserError(f"--out={out}: the name must end in .json")
        check_writable("out", out)
        out.parent.mkdir(parents=True, exist_ok=True)
    for name in ("steps", "samples", "members"):
        if arguments.communication and name in arguments.given:
            raise UserError(f"--{name} has no effect with --communication, which runs nothing: leave one of both out")
    config = read_config(arguments)
    if "train" not in config:
        raise UserError(f"--config={arguments.config} is a chain, which trains nothing itself: time one of its stages")
    if arguments.communication:
        return _communication(config, arguments.communication, arguments.out)
    spec = image_spec(config)
    system = build_system(config, training=True)
    devices = Devices.create(**config.parallel)
    devices.check_batch(config.train.batch_size, config.train.accumulate)
    with enough_memory(memory_advice(config, devices)):
        return _timed(arguments, config, spec, system, devices)


def _timed(arguments: Arguments, config, spec: ImageSpec, system: System, devices: Devices) -> int:
    """Prints the figures, and writes them."""
    batch_size = config.train.batch_size
    step, state = compile_step(config, system, make_optimizers(config, system), devices, _EXAMPLES)
    frozen = devices.put_everywhere(system.frozen)
    generator_of_noise = np.random.default_rng(config.seed)
    pictures = {
        "image": generator_of_noise.integers(0, 256, (batch_size, spec.size, spec.size, spec.channels), np.uint8),
        "label": np.arange(batch_size, dtype=np.int32) % max(spec.classes, 1),
        "index": np.arange(batch_size, dtype=np.int32),
    } | ({"tokens": _tokens(batch_size, system)} if system.text else {})
    batch = devices.put_batch(pictures)

    began = time.perf_counter()
    lowered = step.lower(state, batch, frozen)
    compiled = lowered.compile()
    figures = {"device": f"{devices.count} x {jax.local_devices()[0].device_kind}"}
    figures["compile_seconds"] = time.perf_counter() - began
    seconds = []
    for _ in range(arguments.steps + 2):  # the first two are not counted
        began = time.perf_counter()
        state, metrics = compiled(state, batch, frozen)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[2:])
    figures |= {"step_seconds": median, "images_per_second": batch_size / median}
    flops = (lowered.cost_analysis() or {}).get("flops")
    if flops:
        figures |= {"gflop_per_step": flops / 1e9, "gflop_per_second": flops / median / 1e9}
        peak = _peak(config.dtype)
        if peak:
            figures["fraction_of_peak"] = flops / median / (peak * 1e12 * devices.count)
    if "samples" in arguments.given and not system.sample:
        note(f"--samples={arguments.samples}: has no effect, as system={config.system} draws no samples")
    if arguments.samples and system.sample:
        variables = {**ema_variables(state), "frozen": system.frozen}
        figures["samples_per_second"] = _samples_per_second(arguments.samples, system, spec, config, variables)
    figures["peak_memory_gib"] = _peak_memory() / 2**30
    if arguments.members > 1:
        configs = [ConfigDict({**config.to_dict(), "seed": seed}) for seed in range(arguments.members)]
        ensemble.check_together(configs)
        together, one_by_one = _by_turns(
            arguments.steps,
            _together(configs, system, devices, pictures, frozen),
            _steps(len(configs), compiled, state, batch, frozen),
        )
        figures |= {"together_seconds": together, "one_by_one_seconds": one_by_one, "speedup": one_by_one / together}
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):20} {value if isinstance(value, str) else f'{value:,.4g}'}")
    if arguments.out:
        io.write_json(arguments.out, {"config": config.to_dict(), **figures, **provenance.environment()})
    return 0


def _communication(config, counts: Sequence[str], out: str | None) -> int:
    """Prints, for each number of simulated devices, what a step of the config makes them tell one another."""
    try:
        numbers = [checked_whole("communication", number(count, int)) for count in counts]
    except (ValueError, UserError) as error:
        raise UserError(f"--communication={','.join(counts)}: numbers of devices, such as 8,64,256") from error
    with contextlib.suppress(RuntimeError):  # devices are there already
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", max(numbers))
    spec, system = image_spec(config), blueprint(config)
    rows = []
    for count in numbers:
        devices = Devices.create(**{**config.parallel, "count": count})
        each = count * config.train.accumulate
        size = math.ceil(config.train.batch_size / each) * each
        shapes = {
            "image": ((size, spec.size, spec.size, spec.channels), np.uint8),
            "label": ((size,), np.int32),
            "index": ((size,), np.int32),
        } | ({"tokens": ((size, system.text.length), np.int32)} if system.text else {})
        batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
        compiled = lower_step(config, system, devices, devices.shaped(batch), _EXAMPLES).compile(
            {"xla_backend_optimization_level": 0}  # of what comes after the collectives are placed
        )
        memory = compiled.memory_analysis()
        rows.append(
            {"devices": count, "batch": size, **collectives.bytes_by_kind(compiled.as_text())}
            | {"state and batch": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes}
        )
    state = jax.eval_shape(system.objective.init, jax.random.key(0))["params"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state))
    print(f"{parameters:,} parameters, {4 * parameters / 1e6:,.3f} MB as float32; MB in a step:")
    names = list(dict.fromkeys(name for row in rows for name in row))
    print(" ".join(f"{name:>18}" for name in names))
    for row in rows:
        counts = [row[name] for name in names[:2]]
        print(" ".join(f"{value:>18}" for value in counts + [f"{row.get(name, 0) / 1e6:,.3f}" for name in names[2:]]))
    if out:
        io.write_json(
            out, {"config": config.to_dict(), "parameters": parameters, "rows": rows} | provenance.environment()
        )
    return 0


def _samples_per_second(count: int, system, spec, config, variables) -> float:
    """With the config's own sampler, once it is compiled."""
    generator = Generator(system, batch_size=count)
    condition = {"label": np.arange(count, dtype=np.int32) % max(spec.classes, 1)}
    condition |= {"tokens": _tokens(count, system)} if system.text else {}
    if system.takes:
        condition["original"] = np.zeros((count, spec.size, spec.size, spec.channels), np.float32)
    draw = lambda: generator(variables, range(count), condition, plan)  # noqa: E731
    plan = system.plan(config.sampler)
    draw()
    began = time.perf_counter()
    draw()
    return count / (time.perf_counter() - began)


def _tokens(count: int, system: System) -> np.ndarray:
    """Of texts as long as they may be, of any tokens."""
    return np.random.default_rng(0).integers(0, system.text.vocabulary, (count, system.text.length), np.int32)


def _together(configs, system: System, devices: Devices, batch, frozen) -> Callable[[], None]:
    """What makes a step of all `configs` at once, on a batch that each sees."""
    state = ensemble.fresh_state(configs, system, devices, [batch] * len(configs))
    step, put = ensemble.compile_together(configs, devices, _EXAMPLES)
    return _steps(1, step, state, put([batch] * len(configs)), frozen)


def _steps(count: int, step: Step, state: TrainState, *inputs) -> Callable[[], None]:
    """What makes the next `count` steps, and waits for them."""

    def make():
        nonlocal state
        for _ in range(count):
            state, metrics = step(state, *inputs)
        jax.block_until_ready(metrics)

    return make


def _by_turns(rounds: int, *actions: Callable[[], None]) -> list[float]:
    """The median seconds of each; the first two rounds are not counted."""
    seconds = []
    for _ in range(rounds + 2):
        seconds.append([])
        for action in actions:
            began = time.perf_counter()
            action()
            seconds[-1].append(time.perf_counter() - began)
    return [statistics.median(own) for own in zip(*seconds[2:], strict=True)]


def _peak(dtype: str) -> float | None:
    kind = jax.local_devices()[0].device_kind
    for name, (half, single) in _PEAK.items():
        if name in kind:
            return half if dtype == "bfloat16" else single
    return None


def _peak_memory() -> float:
    """Bytes: the fullest device's peak, or this process's where the device keeps no count (a CPU)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return max(peaks, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
