"""Batches of a source, read ahead by grain's threads. A batch is a pure function of (seed, step).

So a run is resumed by one integer, the step. grain sees one element a step and not one an example: the overhead of
its pipeline, about 50 us an element, is then paid once a batch.
"""

import collections
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from diffjax.errors import UserError, machine_memory

T = TypeVar("T")
HostBatch = dict[str, np.ndarray]


class RandomAccess(Protocol):
    """What batches are made of. If it has `__getitems__` (many indices at once), that is called instead."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, np.ndarray]: ...


def _read(source: RandomAccess, indices: Sequence[int]) -> Sequence[Mapping[str, np.ndarray]]:
    if hasattr(source, "__getitems__"):
        return source.__getitems__(indices)
    return [source[i] for i in indices]


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of an epoch, a permutation [length], and which places of it are flipped, bool [length]."""
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(length), rng.random(length) < 0.5


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a training run: every example once an epoch, in an order that is new each epoch.

    Epochs follow one another without a gap, so a batch may span several and no example is dropped; a batch may be
    larger than the source. What stands at place p of the whole run, and whether it is flipped, depends on the seed
    and p and not on the batch size.

    Raises:
      UserError: an empty source, a key its examples lack, a batch size below 1 or larger than this machine's memory, a
        seed below 0.
    """

    source: RandomAccess
    _: dataclasses.KW_ONLY
    batch_size: int
    seed: int
    flip: bool = False  # mirror left and right with probability 1/2
    keys: tuple[str, ...] = ("image", "label")
    share: tuple[int, int] = (0, 1)  # this process and how many there are: which part of each batch is read

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size} is not positive: use at least 1")
        if self.seed < 0:
            raise UserError(f"seed {self.seed} is negative: use 0 or more")
        if self.batch_size % self.share[1]:
            raise UserError(f"batch size {self.batch_size} does not divide over {self.share[1]} processes")
        if len(self.source) == 0:
            raise UserError("the data source has no examples: choose a split that is not empty")
        has = self.source[0]
        bytes_each = sum(np.asarray(has[key]).nbytes for key in self.keys if key in has)
        if self.batch_size * bytes_each > (memory := machine_memory()):
            raise UserError(
                f"train.batch_size={self.batch_size}: examples of {bytes_each} bytes, and this machine has "
                f"{memory / 2**30:,.0f} GiB: lower it"
            )
        if missing := [key for key in self.keys if key not in has]:
            raise UserError(f"the data set has no {', '.join(missing)}: its examples hold {', '.join(has)}")

    def batch(self, step: int) -> HostBatch:
        """Batch number `step` >= 0.

        Returns:
          This process's share of it, B / processes examples, the first process's first:
          "image" uint8 [B, H, W, C], "label" int32 [B], or whichever keys were asked for, each contiguous (text as a
          NumPy array of str); and "index" int32 [B], the places in the whole batch.
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
        examples = _read(self.source, indices.tolist())
        batch = {key: np.stack([example[key] for example in examples]) for key in self.keys}
        if self.flip:
            batch["image"][flipped] = batch["image"][flipped, :, ::-1]
        return batch | {"index": index.astype(np.int32)}

    def iterate(self, start_step: int = 0, *, threads: int = 4, buffer: int = 16) -> Iterator[HostBatch]:
        """batch(start_step), batch(start_step + 1), ... without end, made by `threads` threads.

        Args:
          threads: 0 makes each batch when it is asked for.
          buffer: how many batches are made ahead.
        """
        import grain

        steps = grain.MapDataset.range(start_step, sys.maxsize).map(self.batch)
        iterator = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)))
        try:
            yield from iterator
        finally:
            iterator.close()  # ends the threads


def prefetch(iterator: Iterable[HostBatch], put: Callable[[HostBatch], T], depth: int = 2) -> Iterator[T]:
    """put(batch) for every batch, started `depth` batches before it is handed out.

    `jax.device_put` returns before the copy is done, so the copy of the next batches overlaps the step on this one.
    An error of the iterator or of `put` is raised as it is, up to `depth` batches early.
    """
    waiting = collections.deque()
    for batch in iterator:
        waiting.append(put(batch))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting
