"""Pictures from a system: one compiled program, fed batch after batch."""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int, UInt8

from diffjax.systems.pixels import to_grey_levels, to_unit_range
from diffjax.typing import System, Variables


class Generator:
    """Draws any number of samples of a system in batches of one size, spread over the local devices.

    Sample i depends on `seeds[i]`, its condition and the plan alone, whatever batch it falls into.

    Attributes:
      compilations: how often the sampling program was traced and compiled so far.
    """

    def __init__(self, system: System, *, batch_size: int):
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._batch_size = math.ceil(batch_size / mesh.size) * mesh.size
        self._whole, self._split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        self.compilations = 0

        def draw(variables, seeds, condition, plan):
            self.compilations += 1  # runs when traced, once a compilation
            images = system.sample(variables, jax.vmap(jax.random.key)(seeds), condition, plan)
            return to_grey_levels(images)

        def reconstruct(variables, images):
            codec = system.codec(variables)
            return to_grey_levels(codec.decode(codec.encode(to_unit_range(images))))

        whole, split = self._whole, self._split
        self._draw = jax.jit(draw, in_shardings=(whole, split, split, whole), out_shardings=split)
        self._reconstruct = jax.jit(reconstruct, in_shardings=(whole, split), out_shardings=split)

    def __call__(
        self,
        variables: Variables,
        seeds: Sequence[int],
        condition: Mapping[str, np.ndarray],
        plan,
        *,
        progress: Callable[[int], None] = lambda images: None,
    ) -> UInt8[np.ndarray, "N H W C"]:
        """One image per seed; `condition` leaves are [N]. `progress` is told the number of images of each batch."""
        variables = jax.device_put(variables, self._whole)
        inputs = np.asarray(seeds, np.uint32), dict(condition)
        return self._batches(lambda batch: self._draw(variables, *batch, plan), inputs, progress)

    def reconstruct(self, variables: Variables, images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N H W C"]:
        """What an autoencoder makes of images."""
        variables = jax.device_put(variables, self._whole)
        return self._batches(lambda batch: self._reconstruct(variables, batch), images)

    def _batches(self, function: Callable, inputs, progress: Callable[[int], None] = lambda images: None) -> np.ndarray:
        """function(inputs) in batches of one size; leaves of `inputs` are [N, ...]."""
        count = len(jax.tree.leaves(inputs)[0])
        results = []
        for start in range(0, count, self._batch_size):
            place = np.minimum(np.arange(start, start + self._batch_size), count - 1)  # the last batch repeats
            batch = jax.device_put(jax.tree.map(lambda leaf, place=place: leaf[place], inputs), self._split)
            results.append(np.asarray(function(batch)))
            progress(min(self._batch_size, count - start))
        return np.concatenate(results)[:count]


def balanced_labels(count: int, classes: int) -> Int[np.ndarray, "N"]:
    """0, 1, ..., classes - 1, 0, 1, ...: every class equally often."""
    return np.arange(count, dtype=np.int32) % max(classes, 1)
