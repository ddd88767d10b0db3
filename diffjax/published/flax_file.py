"""Reads the parameters of a Flax checkpoint of diffusers or transformers under the names and layouts of PyTorch.

The file (`diffusion_flax_model.msgpack`, `flax_model.msgpack`) is the MessagePack encoding of `flax.serialization`:
nested maps of arrays, where an array is an extension that holds its shape, its type and its numbers, and an array above
1 GiB is a map of chunks. Only the maps are read when the file is opened; arrays are read one at a time, on access. A
declared size is compared with the size of the file before anything is read, and nesting and the number of values are
limited.

diffusers and transformers had Flax classes until 2026. Their modules have the names of the PyTorch classes, with
"resnets_0" for "resnets.0".
"""

import contextlib
import dataclasses
import functools
import math
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.published.lazy import LazyTensor

_TYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", "bool")},
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_LISTS = re.compile(  # modules that are lists in PyTorch; other names, such as linear_1, have their number in both
    "(down_blocks|up_blocks|resnets|attentions|transformer_blocks|downsamplers|upsamplers|to_out|net)_([0-9]+)"
)
_WEIGHTS = ("kernel", "scale", "embedding")
_ARRAY, _SCALAR = 1, 3  # codes of flax.serialization's extensions
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH, _MAX_NAME, _MAX_VALUES = 64, 1000, 2**22
_NAME_SHARE = 16  # maximum characters of all names per byte of the file
_MAX_RANK = 32
_NUMBERS = {  # struct's formats by the first byte of a number
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
_SIZED = {  # kind, and bytes of the size, by the first byte of a value
    **{0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4), 0xC7: ("extension", 1), 0xC8: ("extension", 2)},
    **{0xC9: ("extension", 4), 0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4)},
    **{0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)},
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclasses.dataclass(frozen=True)
class _Array:
    """An array in the file: the positions of its numbers, of one chunk or several, and their sizes in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[tuple[int, int], ...]


def open_flax_file(path: str | Path) -> dict[str, LazyTensor]:
    """Returns the arrays of a Flax checkpoint as tensors of PyTorch, by PyTorch's names.

    Kernels become weights, [I, O] -> [O, I] and [h, w, I, O] -> [O, I, h, w]. Values that are not arrays are omitted.

    Raises:
      UserError: the file does not exist, is not a Flax checkpoint, has no arrays, or declares more than it has; on
        access to a tensor, the file was cut since.
    """
    tensors: dict[str, LazyTensor] = {}
    with _reported(path), io.open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        tree = _Parser(file, size).value(0)
        if not isinstance(tree, dict):
            raise ValueError("it has no parameters by name")
        left = _NAME_SHARE * size
        for names, array in _leaves(tree):
            name = torch_name(names)
            left -= len(name)
            if left < 0:
                raise ValueError("its names multiply beyond the size of the file")
            if name in tensors:
                raise ValueError(f"it has {excerpt(name)!r} twice")
            axes = _torch_axes(names[-1], len(array.shape))
            shape = tuple(array.shape[axis] for axis in axes)
            tensors[name] = LazyTensor(shape, array.dtype, functools.partial(_read, path, array, axes))
    if not tensors:
        raise UserError(f"{path} has no named arrays")
    return tensors


def torch_name(names: Sequence[str]) -> str:
    """Returns PyTorch's name of a parameter: ("resnets_0", "conv1", "kernel") -> "resnets.0.conv1.weight"."""
    modules = [_LISTS.sub(r"\1.\2", name) if _LISTS.fullmatch(name) else name for name in names[:-1]]
    return ".".join((*modules, "weight" if names[-1] in _WEIGHTS else names[-1]))


class _Parser:
    """Reads values of MessagePack from a file of `size` bytes; numbers of arrays are skipped."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size, self._values = file, size, 0

    def value(self, depth: int) -> Any:
        """Returns the next value: a dictionary, a list, a text, a number, None, or an `_Array`."""
        self._values += 1
        if depth > _MAX_DEPTH or self._values > _MAX_VALUES:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep, or has more than {_MAX_VALUES:,} values")
        kind, content = self._head()
        if kind == "map":
            return self._map(content, depth)
        if kind == "list":
            return [self.value(depth + 1) for _ in range(content)]  # each value has a byte, so the file ends the loop
        if kind == "text":
            return self._text(content)
        if kind == "bytes":
            self._skip(content)
            return None
        if kind == "extension":
            return self._extension(content)
        return content

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for _ in range(count):
            kind, size = self._head()
            if kind != "text":
                raise ValueError("it has a name that is not text")
            name = self._text(size)
            if name in result:
                raise ValueError(f"it has {excerpt(name)!r} twice")
            result[name] = self.value(depth + 1)
        if _CHUNKED in result:
            return {_CHUNKED: _joined(result)}
        return result

    def _extension(self, size: int) -> _Array | None:
        """Returns the array of an extension; None: another extension."""
        (code,) = struct.unpack(">b", self._take(1))
        end = self._file.tell() + size
        if end > self._size:
            raise ValueError("it is shorter than it declares; download it again")
        if code not in (_ARRAY, _SCALAR):
            self._file.seek(end)
            return None
        kind, count = self._head()
        if (kind, count) != ("list", 3):
            raise ValueError("it has an array without shape, type and numbers")
        kind, rank = self._head()
        if kind != "list" or rank > _MAX_RANK:
            raise ValueError("it has an array without a shape")
        shape = tuple(_count(self._head()[1]) for _ in range(rank))
        kind, length = self._head()
        name = self._text(length) if kind in ("text", "bytes") else ""
        if name not in _TYPES:
            raise ValueError(f"it has an array of type {excerpt(name)!r}, which is not supported")
        kind, length = self._head()
        start, dtype = self._file.tell(), _TYPES[name]
        if kind != "bytes" or start + length != end or math.prod(shape) * dtype.itemsize != length:
            raise ValueError(f"it has an array of shape {shape} that is not of the length described")
        self._file.seek(end)
        return _Array(shape, dtype, ((start, length),))

    def _head(self) -> tuple[str, Any]:
        """Returns the kind of the next value, and its number or its size."""
        first = self._take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return "number", first if first < 0x80 else first - 0x100
        if first < 0xC0:
            return (
                ("map", first & 15) if first < 0x90 else ("list", first & 15) if first < 0xA0 else ("text", first & 31)
            )
        if first in _CONSTANTS:
            return "constant", _CONSTANTS[first]
        if first in _NUMBERS:
            return "number", struct.unpack(_NUMBERS[first], self._take(struct.calcsize(_NUMBERS[first])))[0]
        if first in _SIZED:
            kind, width = _SIZED[first]
            return kind, int.from_bytes(self._take(width))
        if 0xD4 <= first <= 0xD8:
            return "extension", 2 ** (first - 0xD4)
        raise ValueError(f"it has a byte {first:#x} that starts no value")

    def _text(self, size: int) -> str:
        if size > _MAX_NAME:
            raise ValueError(f"it has a name or a text above {_MAX_NAME} bytes")
        text = self._take(size).decode()
        if not text.isprintable():
            raise ValueError(f"it has a name that is not text: {text!r}")
        return text

    def _take(self, count: int) -> bytes:
        content = self._file.read(count)
        if len(content) < count:
            raise ValueError("it is shorter than it declares; download it again")
        return content

    def _skip(self, count: int) -> None:
        if self._file.seek(count, 1) > self._size:
            raise ValueError("it is shorter than it declares; download it again")


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("it has an array whose shape is not of counts")
    return value


def _joined(fields: dict[str, Any]) -> _Array:
    """Returns the array that was written in chunks, which are flat."""
    sides, chunks = fields.get("shape"), fields.get("chunks")
    if not isinstance(sides, dict) or not isinstance(chunks, dict) or not chunks or len(sides) > _MAX_RANK:
        raise ValueError("it has chunks without a shape")
    shape = tuple(_count(sides.get(str(i))) for i in range(len(sides)))
    parts = [part for i in range(len(chunks)) if isinstance(part := chunks.get(str(i)), _Array)]
    if len(parts) < len(chunks) or any(part.dtype != parts[0].dtype for part in parts):
        raise ValueError("it has chunks that are not arrays of one type")
    places = tuple(place for part in parts for place in part.chunks)
    if math.prod(shape) * parts[0].dtype.itemsize != sum(length for _, length in places):
        raise ValueError(f"it has an array of shape {shape} that is not of the length described")
    return _Array(shape, parts[0].dtype, places)


def _leaves(tree: dict[str, Any], names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Array]]:
    """Yields the arrays of nested dictionaries with their names, in the order of the file."""
    for name, value in tree.items():
        if isinstance(value, dict) and _CHUNKED in value:
            value = value[_CHUNKED]
        if isinstance(value, dict):
            yield from _leaves(value, (*names, name))
        elif isinstance(value, _Array):
            yield (*names, name), value


def _torch_axes(leaf: str, rank: int) -> tuple[int, ...]:
    """Returns the order of axes in PyTorch: outputs, inputs and the sides of a kernel; else unchanged."""
    return (rank - 1, rank - 2, *range(rank - 2)) if leaf == "kernel" and rank > 1 else tuple(range(rank))


def _read(path: str | Path, array: _Array, axes: tuple[int, ...]) -> np.ndarray:
    with _reported(path), io.open_regular(path) as file:
        content = bytearray()
        for start, length in array.chunks:
            file.seek(start)
            content += file.read(length)
        flat = np.frombuffer(content, array.dtype.newbyteorder("<"))
        return flat.reshape(array.shape).transpose(axes).astype(array.dtype, order="C")


@contextlib.contextmanager
def _reported(path: str | Path) -> Iterator[None]:
    """Raises UserError in the place of errors of reading a file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a Flax checkpoint that can be read: {excerpt(str(error))}") from error
