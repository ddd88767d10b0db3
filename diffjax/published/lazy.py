"""A tensor of a file, read on access."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is needed.

    Attributes:
      shape: shape in the file.
      dtype: type of the numbers in the file.
      read: returns the tensor, a contiguous array; raises UserError if the file is damaged.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> "LazyTensor":
        """Returns the tensor of an array in memory."""
        return cls(array.shape, array.dtype, lambda: np.asarray(array, order="C"))
