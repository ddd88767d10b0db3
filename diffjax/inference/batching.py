"""Functions of any number of examples, computed in batches of one size that are divided over devices."""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.cluster.multihost import put
from diffjax.errors import memory_limit_as_user_error, note
from diffjax.progress import Compilation


def memory_advice(batch_size: int) -> str:
    """Returns how to lower the memory of computations other than a training step, for an error message."""
    return f"a batch has {batch_size}: lower --batch_size, or train.num_preview_samples if training samples previews"


def limit_batch_size(requested: int, total: int, *, is_given: bool) -> int:
    """Returns the batch size for `total` samples.

    Args:
      requested: value of --batch_size.
      is_given: whether to print a note if it is not the batch size.
    """
    size, devices = min(requested, total), jax.local_device_count()
    if is_given:
        if size < requested:
            note(f"--batch_size={requested}: there are {total} samples, in one batch")
        elif size % devices:
            whole = math.ceil(size / devices) * devices
            note(f"--batch_size={size}: rounded up to {whole}, a multiple of the {devices} devices")
    return size


class DataParallelMap:
    """Compiles functions to run over batches of one size, divided over devices.

    If the devices belong to several processes, every process calls the compiled function with the same inputs, and
    every process gets its result.

    Attributes:
      batch_size: number of examples per batch, rounded up to a multiple of the number of devices.
    """

    def __init__(self, batch_size: int, devices: Sequence[Any] | None = None):
        """Uses the local devices by default."""
        mesh = Mesh(np.array(devices or jax.local_devices()), ("data",))
        self.batch_size = math.ceil(batch_size / mesh.size) * mesh.size
        self.replicated, self.split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def compile(
        self, function: Callable[[Any, Any], Any], name: str = "a program", *, ahead: int | None = None
    ) -> "BatchedFunction":
        """Returns `function(shared, batch)` as a function of any number of examples.

        Args:
          name: name of the function, such as "the sampler", for the message that it compiles.
          ahead: number of batches that are started before the result of the first is copied to the host, so that the
            device does not wait; 0 for a function that calls the host. None: 1, on a CPU 0.
        """
        if ahead is None:
            ahead = int(jax.default_backend() != "cpu")
        return BatchedFunction(function, self, name, ahead)


class BatchedFunction:
    """`function(shared, batch)` compiled once for the batch size of a `DataParallelMap`."""

    def __init__(self, function: Callable[[Any, Any], Any], plan: DataParallelMap, name: str, ahead: int):
        self._compilation, self._ahead = Compilation(name), ahead

        def traced(shared: Any, batch: Any) -> Any:
            self._compilation.start()
            return function(shared, batch)

        out = plan.split if plan.split.is_fully_addressable else plan.replicated
        self._compiled = jax.jit(traced, in_shardings=(plan.replicated, plan.split), out_shardings=out)
        self._plan = plan

    def __call__(self, shared: Any, inputs: Any, progress: Callable[[int], Any] = lambda examples: None) -> Any:
        """Computes the function for N examples.

        Args:
          shared: tree of arrays, copied to every device.
          inputs: tree of arrays [N, ...].
          progress: called after each batch with its number of examples.

        Returns:
          Tree of NumPy arrays [N, ...].

        Raises:
          UserError: a batch does not fit in memory.
        """
        shared, size = put(shared, self._plan.replicated), self._plan.batch_size
        count, results, started = len(jax.tree.leaves(inputs)[0]), [], collections.deque()

        def finish() -> None:
            results.append(jax.device_get(started.popleft()))
            progress(min(size, count - size * (len(results) - 1)))

        with memory_limit_as_user_error(memory_advice(size)):
            for start in range(0, count, size):
                with self._compilation:
                    started.append(self._compiled(shared, self._batch(inputs, start)))
                if len(started) > self._ahead:
                    finish()
            while started:
                finish()
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)

    def compile(self, shared: Any, inputs: Any) -> None:
        """Compiles the function for arguments of these shapes; a later call with such arguments shares the program."""
        with memory_limit_as_user_error(memory_advice(self._plan.batch_size)), self._compilation:
            self._compiled.lower(put(shared, self._plan.replicated), self._batch(inputs, 0)).compile()

    def _batch(self, inputs: Any, start: int) -> Any:
        count = len(jax.tree.leaves(inputs)[0])
        indices = np.minimum(np.arange(start, start + self._plan.batch_size), count - 1)  # the last example pads
        return put(jax.tree.map(lambda leaf: leaf[indices], inputs), self._plan.split)
