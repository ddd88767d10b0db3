"""A function of any number of examples, fed batch after batch and spread over the local devices."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.errors import enough_memory


def memory_advice(batch_size: int) -> str:
    """What makes a batch of anything but training smaller."""
    return f"a batch has {batch_size}: lower --batch_size, or train.sample_count where training draws a sheet"


class Spread:
    """Batches of one size over the local devices; the size is rounded up to what they divide."""

    def __init__(self, batch_size: int):
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self.batch_size = math.ceil(batch_size / mesh.size) * mesh.size
        self._whole, self._split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def compile(self, function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        """`function(shared, batch)` for any number of examples.

        What comes back is called as `(shared, inputs, progress=...)`: `shared` goes to every device, leaves of `inputs`
        are [N, ...], and so are those of the result, NumPy. `progress` is told the number of examples of each batch.
        """
        compiled = jax.jit(function, in_shardings=(self._whole, self._split), out_shardings=self._split)

        def run(shared, inputs, progress: Callable[[int], None] = lambda examples: None):
            shared = jax.device_put(shared, self._whole)
            count, results = len(jax.tree.leaves(inputs)[0]), []
            for start in range(0, count, self.batch_size):
                with enough_memory(memory_advice(self.batch_size)):
                    place = np.minimum(np.arange(start, start + self.batch_size), count - 1)  # the last batch repeats
                    batch = jax.device_put(jax.tree.map(lambda leaf, place=place: leaf[place], inputs), self._split)
                    results.append(jax.device_get(compiled(shared, batch)))
                progress(min(self.batch_size, count - start))
            return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)

        return run
