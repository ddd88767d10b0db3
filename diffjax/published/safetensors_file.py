"""Reads and writes safetensors files, one tensor at a time."""

import contextlib
import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.published.lazy import LazyTensor

_TYPES = {  # NumPy's types of safetensors' names
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}
_NAMES = {np.dtype(dtype): name for name, dtype in _TYPES.items()}


def open_safetensors_file(path: Path) -> dict[str, LazyTensor]:
    """Returns the tensors of a safetensors file by name.

    Raises:
      UserError: the file cannot be opened, is damaged or has a name that is not text; on access to a tensor, the file
        was cut since.
    """
    # The library's errors do not contain the reason, so open_regular is first.
    with _reported(path), io.open_regular(path), safetensors.safe_open(path, framework="numpy") as file:
        tensors = {}
        for name in list(file.keys()):
            if not name.isprintable():
                raise ValueError(f"a tensor's name is not text: {name!r}")
            described = file.get_slice(name)
            if described.get_dtype() not in _TYPES:
                raise ValueError(f"{name} is of type {described.get_dtype()}, which is not supported")
            dtype = np.dtype(_TYPES[described.get_dtype()])
            tensors[name] = LazyTensor(tuple(described.get_shape()), dtype, functools.partial(_get, path, name))
        return tensors


def save(path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file of tensors, which are read one at a time.

    Raises:
      OSError: the file cannot be written.
    """
    with io.atomic_path(path) as temporary:
        write(temporary, tensors, ((name, tensor.read()) for name, tensor in tensors.items()), metadata)


def write(
    path: Path, shapes: Mapping[str, Any], tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file. The same tensors and metadata give the same bytes, in any order.

    `safetensors.numpy` is not used, as it needs all tensors at once, writes transposed arrays in memory order, and
    metadata in random order.

    Args:
      path: file to write.
      shapes: values with the shape and the type of each tensor by name, such as `jax.ShapeDtypeStruct`.
      tensors: name and value of each tensor.
      metadata: text by name.

    Raises:
      OSError: the file cannot be written.
    """
    types = {name: (np.dtype(leaf.dtype), tuple(leaf.shape)) for name, leaf in shapes.items()}
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    starts, end = {}, 0
    for name in sorted(types, key=lambda name: (-types[name][0].itemsize, name)):  # all are aligned
        dtype, shape = types[name]
        starts[name], end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [starts[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            file.seek(8 + len(text) + starts[name])
            file.write(bytes_of(tensor))


def bytes_of(array: np.ndarray) -> memoryview:
    """Returns the bytes of an array in row-major order; they are copied only if they are in another order."""
    return np.ascontiguousarray(array).view(np.uint8).data


def _get(path: Path, name: str) -> np.ndarray:
    with _reported(path), safetensors.safe_open(path, framework="numpy") as file:  # closing frees the pages
        return file.get_tensor(name)


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Raises UserError in the place of any error of reading a safetensors file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the header may have types and shapes unknown to NumPy
        raise UserError(f"{path} is not a safetensors file that can be read: {excerpt(str(error))}") from error
