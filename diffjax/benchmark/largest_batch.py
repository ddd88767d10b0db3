"""The largest batch whose training step fits in memory, by the memory that compiled steps report."""

import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from diffjax.benchmark.random_inputs import NUM_EXAMPLES, batch_shapes
from diffjax.models.base import Model
from diffjax.training.compiled_step import lower_step
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec

_PRECISION = 0.02  # of the result, relative
MAX_BATCH = 2**20


def largest_fitting(memory: Callable[[int], int], limit: int, unit: int) -> tuple[int, dict[int, int]]:
    """Returns the largest batch that fits, within 2 %, and the bytes of each batch whose memory was computed.

    Tries two batches, and then the one at which the line through the first and the last size meets the limit. If it is
    not between the known bounds, it tries 8 times the lower one, or their geometric mean.

    Args:
      memory: bytes of a batch, which grow with it.
      limit: bytes of a device.
      unit: the batch is a multiple of it.

    Returns:
      The batch, 0 if none fits, at most MAX_BATCH; and bytes by batch.
    """
    sizes: dict[int, int] = {}
    fits, too_large, batch = 0, MAX_BATCH + unit, unit
    while True:
        sizes[batch] = memory(batch)
        fits, too_large = (batch, too_large) if sizes[batch] <= limit else (fits, batch)
        if too_large - fits <= max(unit, _PRECISION * fits):
            return fits, sizes
        if len(sizes) == 1:
            batch = 4 * unit
            continue
        (first, low), *_, (second, high) = sizes.items()
        growth = (high - low) / (second - first)
        guess = second + (limit - high) / growth if growth > 0 else math.inf
        if not fits < guess < too_large:
            guess = 8 * fits if too_large > MAX_BATCH else math.sqrt(fits * too_large)
        lowest, highest = fits // unit + 1, math.ceil(too_large / unit) - 1
        batch = unit * min(max(math.floor(guess / unit), lowest), highest)


def step_memory(config: ConfigDict, spec: ImageSpec, model: Model, devices: Devices, batch_size: int) -> int:
    """Returns the bytes of one device for a compiled training step: state, batch, and intermediate values."""
    batch: Any = devices.shaped(batch_shapes(config, spec, model, batch_size))
    lowered = lower_step(config, model, devices, batch, NUM_EXAMPLES)
    memory: Any = lowered.compile().memory_analysis()
    inputs = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return inputs + memory.temp_size_in_bytes
