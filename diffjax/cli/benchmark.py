"""Benchmark a config, or compare with PyTorch; find batches and layouts of devices; check muP.

  python launch.py benchmark --config=configs/digits.py [--steps=20] [--samples=100] [--config.train.batch_size=256 ...]
  python launch.py benchmark --config=configs/digits.py --data [--config.data.name=folder --config.data.dir=DIR ...]
  python launch.py benchmark --config=configs/ddpm_cifar10.py --communication=8,64,256 [--config.parallel.fsdp=8]
  python launch.py benchmark --config=configs/ddpm_cifar10.py --plan=256 [--machine=h100]
  python launch.py benchmark --config=configs/digits.py:dit --coordinates=32,64,128 [--out=check.json]
  python launch.py benchmark --config=configs/ddpm_cifar10.py --find_batch [--memory=16] [--config.model.remat=blocks]
  python launch.py benchmark --against=torch --cases=ddpm_cifar10,dit_s2 [--scale=toy] [--out=torch.json]

Uses random images, so a built-in data set is not required. GFLOP per step are counted in the program before
optimization; the fraction of the device's peak is printed if that is known. Times vary from run to run.

--data also reads --steps batches of the data set without training and without a cache, by the threads or data.workers
of a run. It prints the images per second, and the share of the time that a training step would wait for them.

--find_batch compiles the training step for several batch sizes, without running it, and prints the largest one whose
state and intermediate values fit in the memory of a device, or in --memory GiB, within 2 %. Each of about five sizes
is compiled as for training, which takes minutes for large networks.

--communication compiles the training step for simulated devices, and prints the MB that they exchange per step and the
memory of each.

--plan compiles the step for layouts (parallel.fsdp, parallel.tensor) of this many simulated devices, estimates the time
of each by the bandwidths of --machine, and names the fastest that fits in 75 % of the memory, as jax allocates.

--coordinates trains the network at these widths for --steps steps (3), with and without muP, and prints how the
activations of each layer grow with the width. The base width is train.mup_base_width, or else the smallest.
--out=NAME.json also writes a plot to NAME.png.

--against=torch times the same networks in diffjax and in PyTorch (modules of diffusers and transformers, eager), each
in a process of its own, by turns; torch_compile compiles them with torch.compile. The ratio is the peer's time divided
by ours, the median over --turns turns of --steps steps (3), with its range. Cases: ddpm_cifar10, adm64, dit_s2, dit_b2
and clip_vit_b32 (training steps), kl_f8, dalle_sampling, ddim_50 and sd15. Requires pip install 'diffjax[parity]'.
"""

import contextlib
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags as absl_flags
from ml_collections import ConfigDict

from diffjax import io
from diffjax.benchmark.cases import SCALES
from diffjax.benchmark.largest_batch import largest_fitting, step_memory
from diffjax.benchmark.random_inputs import NUM_EXAMPLES, random_batch, random_tokens
from diffjax.cli.against import print_comparison
from diffjax.cli.communication import print_communication
from diffjax.cli.coordinates import DEFAULT_STEPS, print_coordinates
from diffjax.cli.flags import Arguments, Flags, check_writable, define_config, read_config
from diffjax.cli.layout_plan import print_plan
from diffjax.cluster.cost_model import peak_tflops
from diffjax.data import Batches
from diffjax.data.pipeline import default_threads
from diffjax.data.sources import OpenedSets
from diffjax.errors import UserError, memory_limit_as_user_error, note
from diffjax.evaluation import provenance
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.models.base import Model
from diffjax.models.capabilities import is_generative, is_text_conditioned, is_upsampling_stage
from diffjax.models.lora import is_lora
from diffjax.runs.datasets import image_spec, open_training_examples, resolve
from diffjax.runs.latents import stored_arrays
from diffjax.runs.loading import build_model
from diffjax.runs.state import TrainState, ema_variables
from diffjax.training.compiled_step import compile_step, make_optimizers, memory_advice, step_flops
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec, Variables

_WARMUP = 2  # steps that are not timed
_TIMING = ("steps", "samples", "data")
_MODES = ("communication", "plan", "coordinates")
_WITHOUT_EFFECT = {  # flags that a mode does not use, and why
    "against": (("config", *_TIMING[1:], *_MODES, "machine", "find_batch", "memory"), "has cases of its own"),
    "communication": (_TIMING, "only compiles"),
    "plan": (_TIMING, "only compiles"),
    "find_batch": ((*_TIMING, *_MODES), "only compiles"),
    "coordinates": (("samples", "data", "communication"), "only trains"),
}
_STEPS_PER_TURN = 3  # default of --steps with --against


def define(flags: Flags) -> None:
    define_config(flags)
    absl_flags.DEFINE_integer("steps", 20, "number of training steps to time", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer("samples", 100, "number of samples to time, 0: none", lower_bound=0, flag_values=flags)
    absl_flags.DEFINE_boolean("data", False, "also time reading the data set", flag_values=flags)
    absl_flags.DEFINE_list("communication", None, "numbers of devices to compile the step for", flag_values=flags)
    absl_flags.DEFINE_integer("plan", None, "number of devices whose layouts to compare", flag_values=flags)
    absl_flags.DEFINE_string("machine", None, "hosts of --plan: a100, h100 (default) or h200", flag_values=flags)
    absl_flags.DEFINE_boolean("find_batch", False, "find the largest batch that fits in memory", flag_values=flags)
    absl_flags.DEFINE_float(
        "memory", None, "GiB of a device for --find_batch (default: an accelerator's)", lower_bound=0, flag_values=flags
    )
    absl_flags.DEFINE_list("coordinates", None, "widths for the coordinate check of muP", flag_values=flags)
    absl_flags.DEFINE_list("against", None, "peers to compare with: torch, torch_compile", flag_values=flags)
    absl_flags.DEFINE_list("cases", None, "cases of --against (default: all)", flag_values=flags)
    absl_flags.DEFINE_enum("scale", "full", SCALES, "size of the cases: full | toy", flag_values=flags)
    absl_flags.DEFINE_integer("turns", 5, "turns of each side of --against", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer(
        "batch_size", 0, "examples of each case; 0: those of the case", lower_bound=0, flag_values=flags
    )
    absl_flags.DEFINE_string("out", None, "JSON file to write the results to", flag_values=flags)


def run(arguments: Arguments) -> int:
    if arguments.out:
        out = Path(arguments.out)
        if out.suffix != ".json":
            raise UserError(f"--out={out}: the name must end in .json")
        check_writable("out", out)
        out.parent.mkdir(parents=True, exist_ok=True)
    for mode, (names, reason) in _WITHOUT_EFFECT.items():
        for name in names:
            if getattr(arguments, mode) and name in arguments.given_flags:
                raise UserError(f"--{name}: has no effect with --{mode}, which {reason}; remove one of them")
    if arguments.against:
        return _compare(arguments)
    for name in ("cases", "scale", "turns", "batch_size"):
        if name in arguments.given_flags:
            raise UserError(f"--{name}: requires --against; add --against=torch, or remove it")
    if arguments.machine and not arguments.plan:
        raise UserError(f"--machine={arguments.machine}: requires --plan, the number of devices; add it")
    if arguments.memory and not arguments.find_batch:
        raise UserError(f"--memory={arguments.memory:g}: requires --find_batch; add it, or remove the flag")
    config = read_config(arguments)
    if "train" not in config:
        raise UserError(f"--config={arguments.config}: a pipeline trains nothing itself; benchmark one of its stages")
    if is_lora(config):
        raise UserError(f"train.lora.rank={config.train.lora.rank}: is not supported by benchmark; set it to 0")
    opened: OpenedSets = {}
    config = resolve(config, opened)
    if arguments.communication:
        results = print_communication(config, arguments.communication)
    elif arguments.plan:
        results = print_plan(config, arguments.plan, arguments.machine or "h100")
    elif arguments.find_batch:
        results = _find_batch(config, arguments.memory)
    elif arguments.coordinates:
        spec, model = image_spec(config), build_model(config, abstract=True)
        steps = arguments.steps if "steps" in arguments.given_flags else DEFAULT_STEPS
        plot = Path(arguments.out).with_suffix(".png") if arguments.out else None
        batch = random_batch(config, spec, model)
        results = print_coordinates(config, spec, batch, arguments.coordinates, steps, plot)
    else:
        results = _benchmark(arguments, config, opened)
    if arguments.out:
        io.write_json(arguments.out, {"config": config.to_dict(), **results, **provenance.environment()})
    return 0


def _compare(arguments: Arguments) -> int:
    """Compares with the peers of --against. Returns the exit code 0."""
    if arguments.overrides:
        raise UserError(f"{arguments.overrides[0]}: has no effect with --against; choose --cases and --batch_size")
    steps = arguments.steps if "steps" in arguments.given_flags else _STEPS_PER_TURN
    results = print_comparison(
        arguments.against, arguments.cases or (), arguments.scale, arguments.batch_size, arguments.turns, steps
    )
    if arguments.out:
        io.write_json(arguments.out, {**results, **provenance.environment()})
    return 0


def _benchmark(arguments: Arguments, config: ConfigDict, opened: OpenedSets) -> dict[str, Any]:
    """Times training and sampling; prints and returns the results."""
    spec, model = image_spec(config), build_model(config, training=True)
    devices = Devices.create(**config.parallel)
    devices.check_batch(config.train.batch_size, config.train.accumulate, model.group_size)
    if "samples" in arguments.given_flags and not is_generative(model):
        note(f"--samples={arguments.samples}: has no effect, because system={config.system} does not sample")
    with memory_limit_as_user_error(memory_advice(config, devices)):
        state, results = _time_training(config, spec, model, devices, arguments.steps)
        if arguments.samples and is_generative(model):
            variables = {**ema_variables(state), "frozen": model.frozen}
            seconds = _time_sampling(arguments.samples, model, spec, config, variables)
            results["samples_per_second"] = arguments.samples / seconds
    if arguments.data:
        seconds = _time_data(config, arguments.steps, opened)
        results["data_images_per_second"] = config.train.batch_size / seconds
        results["data_wait"] = max(0.0, 1 - results["step_seconds"] / seconds)
    results["peak_memory_gib"] = _peak_memory() / 2**30
    for name, value in results.items():
        print(f"{name.replace('_', ' '):20} {value if isinstance(value, str) else f'{value:,.4g}'}")
    return results


def _find_batch(config: ConfigDict, gib: float | None) -> dict[str, Any]:
    """Prints and returns the largest batch that fits in `gib` GiB per device; None: in the memory of a device."""
    limit = gib * 2**30 if gib else (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if not limit:
        raise UserError("--find_batch: a CPU has no memory of its own; add a limit in GiB, such as --memory=16")
    spec, model = image_spec(config), build_model(config, abstract=True)
    devices = Devices.create(**config.parallel)
    unit = devices.num_shares * config.train.accumulate * model.group_size

    def memory(batch_size: int) -> int:
        size = step_memory(config, spec, model, devices, batch_size)
        print(f"batch {batch_size:>9,}: {size / 2**30:8.3f} GiB per device", flush=True)
        return size

    batch, sizes = largest_fitting(memory, int(limit), unit)
    if not batch:
        raise UserError(
            f"--memory={limit / 2**30:g}: a batch of {unit} does not fit; set config.model.remat=blocks, a larger "
            "config.parallel.fsdp, or a smaller network"
        )
    print(f"largest batch: {batch:,} ({sizes[batch] / 2**30:.3f} of {limit / 2**30:g} GiB)")
    return {"largest_batch": batch, "memory_gib": limit / 2**30, "bytes_by_batch": sizes}


def _time_training(
    config: ConfigDict, spec: ImageSpec, model: Model, devices: Devices, steps: int
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state after the timed steps, and the results by name."""
    batch_size = config.train.batch_size
    step, state = compile_step(config, model, make_optimizers(config, model), devices, NUM_EXAMPLES)
    frozen = devices.replicate(model.frozen)
    batch = devices.put_batch(random_batch(config, spec, model))

    start = time.perf_counter()
    lowered = step.lower(state, batch, frozen)
    compiled = lowered.compile()
    results: dict[str, Any] = {"device": f"{devices.num_devices} x {jax.local_devices()[0].device_kind}"}
    results["compile_seconds"] = time.perf_counter() - start
    seconds = []
    for _ in range(steps + _WARMUP):
        start = time.perf_counter()
        state, metrics = compiled(state, batch, frozen)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[_WARMUP:])
    results |= {"step_seconds": median, "images_per_second": batch_size / median}
    if flops := step_flops(config, lowered):
        results |= {"gflop_per_step": flops / 1e9, "gflop_per_second": flops / median / 1e9}
        if peak := peak_tflops(jax.local_devices()[0].device_kind, config.dtype):
            results["fraction_of_peak"] = flops / median / (peak * 1e12 * devices.num_devices)
    return state, results


def _time_sampling(count: int, model: Any, spec: ImageSpec, config: ConfigDict, variables: Variables) -> float:
    """Returns the seconds of sampling `count` images with the config's sampler, without compilation."""
    runner, settings = SampleRunner(model, batch_size=count), model.make_settings(config.sampler)
    conditions: dict[str, np.ndarray] = {"label": np.arange(count, dtype=np.int32) % max(spec.classes, 1)}
    if is_text_conditioned(model):
        conditions["tokens"] = random_tokens(count, model)
    if is_upsampling_stage(model):
        conditions["original"] = np.zeros((count, spec.size, spec.size, spec.channels), np.float32)
    runner(variables, range(count), conditions, settings)
    start = time.perf_counter()
    runner(variables, range(count), conditions, settings)
    return time.perf_counter() - start


def _time_data(config: ConfigDict, steps: int, opened: OpenedSets) -> float:
    """Returns the seconds per batch of `steps` batches of the data set, decoded as in the first epoch of training."""
    config, workers = ConfigDict(config.to_dict()), config.data.get("workers", 0)
    config.data.cache_gib = 0.0  # else examples of a small set are read again
    source = open_training_examples(config, opened)
    keys = (*(stored_arrays(config) or ("image",)), "label")
    batches = Batches(source, batch_size=config.train.batch_size, seed=config.seed, flip=config.data.flip, keys=keys)
    ahead = 3 * workers or default_threads()  # batches that are read ahead, which are not timed
    with contextlib.closing(batches.iterate(workers=workers, buffer=ahead)) as iterator:
        for _ in range(ahead):
            next(iterator)
        start = time.perf_counter()
        for _ in range(steps):
            next(iterator)
        return (time.perf_counter() - start) / steps


def _peak_memory() -> float:
    """Returns the largest peak of a device in bytes; on devices without statistics (CPUs), that of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return max(peaks, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
