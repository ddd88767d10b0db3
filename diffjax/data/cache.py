"""Memory of decoded examples, bounded in size and shared by the threads and processes that read a data set."""

import contextlib
import fcntl
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from diffjax.errors import machine_memory, validate_number

Example = dict[str, Any]  # "image" uint8 [H, W, C], "label" int32 [], "caption" str where the set has one

_SHAPE = 5  # integers per example: height, width, channels, label, and bytes of the caption (-1: no caption)


class Cache:
    """Keeps the first examples that fit into a number of bytes. Thread-safe; a pickled copy shares the memory.

    Nothing is evicted: every epoch reads every example once, in random order, so all are equally worth keeping.

    The memory is an anonymous file, whose pages exist once they are used. It holds the number of bytes in use, the
    start and shape of each example (0: not in the cache), and the pixels and captions.
    """

    def __init__(self, cache_gib: float, length: int):
        """Creates an empty cache.

        Args:
          cache_gib: maximum size in GiB; -1: a quarter of this machine's memory.
          length: number of examples of the data set.

        Raises:
          UserError: another negative size.
        """
        if cache_gib != -1:
            validate_number("data.cache_gib", cache_gib, low=0)
        size = machine_memory() // 4 if cache_gib == -1 else int(cache_gib * 2**30)
        self._map(os.memfd_create("examples") if hasattr(os, "memfd_create") else -1, size, length)
        self._used[0] = self._first

    def get(self, i: int, make: Callable[[int], Example]) -> Example:
        """Returns example i, from the cache or by `make(i)`."""
        example = self.find(i)
        if example is None:
            example = make(i)
            self.add(i, example)
        return example

    def find(self, i: int) -> Example | None:
        """Returns example i, whose image is read-only, or None if it is not in the cache."""
        start = int(self._starts[i])
        if not start:
            return None
        height, width, channels, label, num_bytes = self._shapes[i].tolist()
        end = start + height * width * channels
        image = self._bytes[start:end].reshape(height, width, channels)
        example = {"image": image, "label": np.int32(label)}
        return example if num_bytes < 0 else {**example, "caption": bytes(self._bytes[end : end + num_bytes]).decode()}

    def add(self, i: int, example: Example) -> None:
        """Keeps example i if there is room for it."""
        image, caption = example["image"], example.get("caption")
        content = image.tobytes() + (b"" if caption is None else caption.encode())
        if self._starts[i] or self._used[0] + len(content) > self._size:
            return
        with self._exclusive():
            start = int(self._used[0])
            if start + len(content) > self._size:
                return
            self._used[0] = start + len(content)
        self._memory[start : start + len(content)] = content
        self._shapes[i] = *image.shape, example["label"], -1 if caption is None else len(content) - image.nbytes
        self._starts[i] = start  # last, as it makes the example visible

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Excludes other threads, and other processes."""
        with self._lock:
            if self._file < 0:
                yield
                return
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _map(self, file: int, size: int, length: int) -> None:
        """Maps the memory. `file` is its descriptor; -1: memory of this process only."""
        self._file, self._size, self._length, self._lock = file, size, length, threading.Lock()
        starts, shapes = 8, 8 * (1 + length)
        self._first = shapes + 4 * _SHAPE * length
        mapped = max(size, self._first)
        if file >= 0:
            os.ftruncate(file, mapped)
            weakref.finalize(self, os.close, file)
        self._memory = mmap.mmap(file, mapped)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._bytes.flags.writeable = False
        self._used = np.frombuffer(self._memory, np.int64, 1)
        self._starts = np.frombuffer(self._memory, np.int64, length, starts)
        self._shapes = np.frombuffer(self._memory, np.int32, _SHAPE * length, shapes).reshape(length, _SHAPE)

    def __getstate__(self) -> tuple[str, int, int]:
        if self._file < 0:
            raise TypeError("shared memory requires Linux")
        return f"/proc/{os.getpid()}/fd/{self._file}", self._size, self._length

    def __setstate__(self, state: tuple[str, int, int]) -> None:
        path, size, length = state
        self._map(os.open(path, os.O_RDWR), size, length)
