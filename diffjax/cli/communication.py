"""Communication of a training step over simulated devices, for `benchmark --communication`."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax.cluster import collectives
from diffjax.errors import UserError, validate_integer
from diffjax.models.base import Model
from diffjax.parsing import number
from diffjax.runs.datasets import image_spec
from diffjax.runs.latents import stored_arrays
from diffjax.runs.loading import build_model
from diffjax.training.compiled_step import lower_step
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec


def print_communication(config: ConfigDict, counts: Sequence[str], examples: int) -> dict[str, Any]:
    """Compiles the training step for each number of devices; prints and returns the bytes exchanged per step.

    Args:
      counts: numbers of devices, as text.
      examples: size of the data set.

    Raises:
      UserError: an entry of `counts` is not a number of devices.
    """
    try:
        device_counts = [validate_integer("communication", int(number(count, int))) for count in counts]
    except (ValueError, UserError) as error:
        raise UserError(f"--communication={','.join(counts)}: must be numbers of devices, such as 8,64,256") from error
    with contextlib.suppress(RuntimeError):  # the devices exist already
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", max(device_counts))
    spec, model = image_spec(config), build_model(config, abstract=True)
    rows = [_row(config, spec, model, count, examples) for count in device_counts]
    shapes = model.variable_shapes["params"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    _print_table(parameters, rows)
    return {"parameters": parameters, "rows": rows}


def _row(config: ConfigDict, spec: ImageSpec, model: Model, count: int, examples: int) -> dict[str, int]:
    """Returns the bytes of each kind of collective per step, and of each device's memory."""
    devices = Devices.create(**{**config.parallel, "num_devices": count})
    multiple = count * config.train.accumulate
    size = math.ceil(config.train.batch_size / multiple) * multiple
    stored = {name: ((size, *shape), np.float32) for name, shape in stored_arrays(config).items()}
    shapes = {
        **(stored or {"image": ((size, spec.size, spec.size, spec.channels), np.uint8)}),
        "label": ((size,), np.int32),
        "index": ((size,), np.int32),
    } | ({"tokens": ((size, model.text.length), np.int32)} if model.text else {})
    batch: Any = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}  # collectives are placed before
    compiled: Any = lower_step(config, model, devices, devices.shaped(batch), examples).compile(options)
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
