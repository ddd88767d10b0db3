"""Batches of a data source, read ahead by grain's threads or processes. A batch is a pure function of (seed, step).

So one integer, the step, resumes a run. An element of the grain pipeline is a batch, not an example, because grain's
overhead is about 50 us per element.
"""

import collections
import dataclasses
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from diffjax.errors import UserError, excerpt, machine_memory

T = TypeVar("T")
HostBatch = dict[str, np.ndarray]


class RandomAccess(Protocol):
    """Data source of batches. A method `__getitems__` (several indices at once) is called instead if it exists."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, np.ndarray]: ...


def _read(
    source: RandomAccess, indices: Sequence[int], seeds: Sequence[tuple[int, ...]]
) -> Sequence[Mapping[str, np.ndarray]]:
    """Returns examples, cropped at random if the source has `read_crops`; `seeds` determine the position of each."""
    if read_crops := getattr(source, "read_crops", None):
        return read_crops(indices, np.stack([np.random.default_rng(seed).random(2) for seed in seeds]))
    read_many = getattr(source, "__getitems__", None)
    return read_many(indices) if read_many else [source[i] for i in indices]


def _mirror(example: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Returns an example mirrored left and right; those with latents have the latents of their mirror image."""
    if "mirrored_latent" in example:
        return {**example, "latent": example["mirrored_latent"]}
    return {**example, "image": example["image"][:, ::-1]}


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the order of an epoch, a permutation [length], and which positions are flipped, bool [length]."""
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(length), rng.random(length) < 0.5


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches of a training run: every example once per epoch, in a new random order per epoch.

    A batch may span several epochs, so no example is dropped, and a batch may be larger than the source. The example at
    position p of the whole run, whether it is flipped, and the position of a random crop depend on the seed and p, not
    on the batch size.

    Raises:
      UserError: an empty source, a key that its examples do not have, a batch size below 1 or larger than the
        memory of this machine, or a negative seed.
    """

    source: RandomAccess
    _: dataclasses.KW_ONLY
    batch_size: int  # examples over all processes
    seed: int  # at least 0
    flip: bool = False  # mirror left and right with probability 1/2
    keys: tuple[str, ...] = ("image", "label")  # keys of an example that a batch contains
    share: tuple[int, int] = (0, 1)  # index of this process and number of processes, which split each batch

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"train.batch_size={self.batch_size}: must be positive; use at least 1")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must not be negative; use 0 or more")
        if self.batch_size % self.share[1]:
            raise UserError(
                f"train.batch_size={self.batch_size}: must be a multiple of the number of processes, {self.share[1]}"
            )
        if len(self.source) == 0:
            raise UserError("data.split: has no examples; choose a split that is not empty")
        example = self.source[0]
        bytes_each = sum(np.asarray(example[key]).nbytes for key in self.keys if key in example)
        if self.batch_size * bytes_each > (memory := machine_memory()):
            raise UserError(
                f"train.batch_size={self.batch_size}: examples of {bytes_each} bytes exceed this machine's "
                f"{memory / 2**30:,.0f} GiB; use a smaller batch"
            )
        if missing := [key for key in self.keys if key not in example]:
            raise UserError(f"the data set has no {', '.join(missing)}: its examples have {', '.join(example)}")

    def batch(self, step: int) -> HostBatch:
        """Returns this process's part of a batch, B / processes consecutive examples.

        Args:
          step: number of the batch, from 0.

        Returns:
          The `keys` of the examples, such as "image" uint8 [B, H, W, C] and "label" int32 [B], each contiguous (text as
          a NumPy array of str); and "index" int32 [B], positions in the whole batch.
        """
        length = len(self.source)
        process, processes = self.share
        size = self.batch_size // processes
        index = np.arange(process * size, (process + 1) * size)
        epochs, places = np.divmod(step * self.batch_size + index, length)
        indices, flipped = np.empty_like(places), np.empty(size, bool)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            order, mirrored = _epoch(self.seed, epoch, length)
            indices[here], flipped[here] = order[places[here]], mirrored[places[here]]
        seeds = [(self.seed, epoch, place) for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)]
        examples = _read(self.source, indices.tolist(), seeds)
        if self.flip:
            examples = [_mirror(example) if f else example for example, f in zip(examples, flipped, strict=True)]
        batch = {key: np.stack([example[key] for example in examples]) for key in self.keys}
        return batch | {"index": index.astype(np.int32)}

    def iterate(
        self, start_step: int = 0, *, workers: int = 0, threads: int | None = None, buffer: int = 16
    ) -> Generator[HostBatch]:
        """Yields batch(start_step), batch(start_step + 1), ... without end.

        Args:
          start_step: number of the first batch.
          workers: processes that read batches ahead, each another batch; 0: threads of this process.
          threads: threads that read batches ahead; 0: read each batch when it is requested; None: `default_threads`.
            Each worker has one.
          buffer: maximum number of batches read ahead by threads; each worker reads one or two ahead.

        Raises:
          UserError: the source cannot be used by several processes, or a worker ended unexpectedly.
        """
        import grain
        from absl import flags

        read, options = self.batch, grain.ReadOptions(default_threads() if threads is None else threads, buffer)
        if workers:
            read, options = _BatchReader(self, workers), grain.ReadOptions(1, 1)
        steps = grain.MapDataset.range(start_step, sys.maxsize).map(read).to_iter_dataset(options)
        if workers:
            flags.FLAGS.mark_as_parsed()  # grain reads its own flags, of which the command line has none
            steps = steps.mp_prefetch(grain.MultiprocessingOptions(workers), _start_worker)
        iterator = iter(steps)
        try:
            for batch in iterator:
                # A copy: shared memory that is in use when the program ends is reported as leaked.
                yield {key: np.array(value) for key, value in batch.items()} if workers else batch
                del batch
        except RuntimeError as error:
            if not workers or "exit code" not in str(error):
                raise
            reason = excerpt(str(error).partition(". ")[0])
            raise UserError(
                f"data.workers={workers}: {reason}; if memory or /dev/shm is full, use fewer workers or a smaller batch"
            ) from error
        finally:
            iterator.close()  # ends the threads and processes


class _BatchReader:
    """Function from a step to its batch that is sent to other processes, pickled once."""

    def __init__(self, batches: Batches, workers: int):
        import cloudpickle  # unlike pickle, supports functions that are defined in functions

        try:
            self._pickled = cloudpickle.dumps(batches)
        except Exception as error:  # objects raise various exceptions
            reason = excerpt(f"{type(error).__name__}: {error}")
            raise UserError(
                f"data.workers={workers}: this data set cannot be read by other processes ({reason}); set it to 0"
            ) from error
        self._batches: Batches | None = None

    def __call__(self, step: int) -> HostBatch:
        batches = self._batches or pickle.loads(self._pickled)
        self._batches = batches
        return batches.batch(step)


def _start_worker(index: int, workers: int) -> None:
    """Prepares a process that reads batches: signals are handled by its parent, and it ends with its parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def default_threads() -> int:
    """Returns the number of threads that read batches, unless another one is given: one per core, from 4 to 16."""
    return min(max(os.cpu_count() or 4, 4), 16)


def read_in_order(source: RandomAccess, size: int, *, buffer: int = 4) -> Generator[list[Mapping[str, Any]]]:
    """Yields all examples in their order, `size` at a time, read ahead by threads.

    Args:
      buffer: maximum number of groups read ahead.
    """
    import grain

    def read(start: int) -> list[Mapping[str, Any]]:
        indices = range(start, min(start + size, len(source)))
        return list(_read(source, indices, []))

    starts = grain.MapDataset.range(0, len(source), size).map(read)
    iterator = iter(starts.to_iter_dataset(grain.ReadOptions(num_threads=buffer, prefetch_buffer_size=buffer)))
    try:
        yield from iterator
    finally:
        iterator.close()


def prefetch(iterator: Iterable[HostBatch], put: Callable[[HostBatch], T], depth: int = 2) -> Iterator[T]:
    """Yields put(batch) for every batch, called `depth` batches ahead.

    `jax.device_put` returns before the copy is complete, so the next copies overlap with the current step.
    An error of the iterator or of `put` is raised unchanged, up to `depth` batches early.

    Args:
      iterator: batches on the host.
      put: starts the copy of a batch to the devices.
      depth: number of batches ahead.
    """
    waiting = collections.deque()
    for batch in iterator:
        waiting.append(put(batch))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting
