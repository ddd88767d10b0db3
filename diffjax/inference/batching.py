"""A function of any number of examples, fed batch after batch and spread over devices."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.cluster.multihost import put
from diffjax.errors import enough_memory


def memory_advice(batch_size: int) -> str:
    """What makes a batch of anything but training smaller."""
    return f"a batch has {batch_size}: lower --batch_size, or train.sample_count where training draws a sheet"


class Spread:
    """Batches of one size over devices, the local ones by default; the size is rounded up to what they divide.

    Where they are those of several processes, all call what is compiled, with the same inputs, and all get its result.
    """

    def __init__(self, batch_size: int, devices: Sequence[jax.Device] | None = None):
        mesh = Mesh(np.array(devices or jax.local_devices()), ("data",))
        self.batch_size = math.ceil(batch_size / mesh.size) * mesh.size
        self._whole, self._split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def compile(self, function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        """`function(shared, batch)` for any number of examples.

        What comes back is called as `(shared, inputs, progress=...)`: `shared` goes to every device, leaves of `inputs`
        are [N, ...], and so are those of the result, NumPy. `progress` is told the number of examples of each batch.
        """
        out = self._split if self._split.is_fully_addressable else self._whole
        compiled = jax.jit(function, in_shardings=(self._whole, self._split), out_shardings=out)

        def batch_from(inputs, start: int):
            count = len(jax.tree.leaves(inputs)[0])
            place = np.minimum(np.arange(start, start + self.batch_size), count - 1)  # the last batch repeats
            return put(jax.tree.map(lambda leaf: leaf[place], inputs), self._split)

        def run(shared, inputs, progress: Callable[[int], None] = lambda examples: None):
            shared = put(shared, self._whole)
            count, results = len(jax.tree.leaves(inputs)[0]), []
            for start in range(0, count, self.batch_size):
                with enough_memory(memory_advice(self.batch_size)):
                    results.append(jax.device_get(compiled(shared, batch_from(inputs, start))))
                progress(min(self.batch_size, count - start))
            return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)

        def compile_only(shared, inputs):
            with enough_memory(memory_advice(self.batch_size)):
                compiled.lower(put(shared, self._whole), batch_from(inputs, 0)).compile()

        run.compile = compile_only  # its program is shared with `run`: JAX keeps it by the arguments' shapes
        return run
