"""Communication of a training step over simulated devices, for `benchmark --communication`."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from diffjax.benchmark.random_inputs import NUM_EXAMPLES, batch_shapes
from diffjax.cluster import collectives
from diffjax.errors import UserError, validate_integer
from diffjax.models.base import Model
from diffjax.nn.target import simulated_accelerator
from diffjax.parsing import number
from diffjax.runs.datasets import image_spec
from diffjax.runs.loading import build_model
from diffjax.training.compiled_step import lower_step
from diffjax.training.sharding import Devices


def print_communication(config: ConfigDict, counts: Sequence[str]) -> dict[str, Any]:
    """Compiles the training step for each number of devices; prints and returns the bytes exchanged per step.

    Args:
      counts: numbers of devices, as text.

    Raises:
      UserError: an entry of `counts` is not a number of devices.
    """
    try:
        device_counts = [validate_integer("communication", int(number(count, int))) for count in counts]
    except (ValueError, UserError) as error:
        raise UserError(f"--communication={','.join(counts)}: must be numbers of devices, such as 8,64,256") from error
    simulate_devices(max(device_counts))
    model = build_model(config, abstract=True)
    rows = [_row(config, model, count) for count in device_counts]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.variable_shapes["params"]))
    _print_table(parameters, rows)
    return {"parameters": parameters, "rows": rows}


def simulate_devices(count: int) -> None:
    """Makes jax have this many virtual CPU devices, unless it has devices already."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)


def lower(config: ConfigDict, model: Model, devices: Devices, batch_size: int) -> jax.stages.Lowered:
    """Lowers the training step of a config, as for accelerators, for a global batch and devices that need not exist."""
    batch = batch_shapes(config, image_spec(config), model, batch_size)
    with simulated_accelerator():
        return lower_step(config, model, devices, devices.shaped(batch), NUM_EXAMPLES)


def compile_layout(lowered: jax.stages.Lowered) -> Any:
    """Compiles a step without the optimisations of its computations, which do not change its collectives."""
    return lowered.compile({"xla_backend_optimization_level": "0"})


def _row(config: ConfigDict, model: Model, count: int) -> dict[str, int]:
    """Returns the bytes of each kind of collective per step, and of each device's memory."""
    devices = Devices.create(**{**config.parallel, "num_devices": count})
    multiple = devices.num_shares * config.train.accumulate * model.group_size
    size = math.ceil(config.train.batch_size / multiple) * multiple
    compiled = compile_layout(lower(config, model, devices, size))
    memory = compiled.memory_analysis()
    return {"devices": count, "batch": size, **collectives.bytes_by_kind(compiled.as_text() or "")} | {
        "state and batch": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }


def _print_table(parameters: int, rows: Sequence[dict[str, int]]) -> None:
    print(f"{parameters:,} parameters, {4 * parameters / 1e6:,.3f} MB as float32; MB per step:")
    names = list(dict.fromkeys(name for row in rows for name in row))
    print(" ".join(f"{name:>18}" for name in names))
    for row in rows:
        cells = [str(row[name]) for name in names[:2]] + [f"{row.get(name, 0) / 1e6:,.3f}" for name in names[2:]]
        print(" ".join(f"{cell:>18}" for cell in cells))
