"""Pictures from a system: one compiled program, fed batch after batch."""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int, UInt8

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
            return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)

        whole, split = self._whole, self._split
        self._draw = jax.jit(draw, in_shardings=(whole, split, split, whole), out_shardings=split)

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
        seeds = np.asarray(seeds, np.uint32)
        pictures = []
        for start in range(0, len(seeds), self._batch_size):
            place = np.minimum(np.arange(start, start + self._batch_size), len(seeds) - 1)  # the last batch repeats
            batch = seeds[place], {name: values[place] for name, values in condition.items()}
            pictures.append(np.asarray(self._draw(variables, *jax.device_put(batch, self._split), plan)))
            progress(min(self._batch_size, len(seeds) - start))
        return np.concatenate(pictures)[: len(seeds)]


def balanced_labels(count: int, classes: int) -> Int[np.ndarray, "N"]:
    """0, 1, ..., classes - 1, 0, 1, ...: every class equally often."""
    return np.arange(count, dtype=np.int32) % max(classes, 1)
