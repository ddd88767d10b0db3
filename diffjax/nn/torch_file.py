"""The tensors of a PyTorch checkpoint, read without PyTorch and without running what the file says.

A checkpoint is a pickle that describes the tensors, and the storages (flat runs of numbers) that they are views of.
`torch.save` has put both into a zip archive since PyTorch 1.6, and one after the other into a plain file before.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from diffjax.errors import UserError

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_PLAIN_MAGIC, _PLAIN_VERSION = 0x1950A86A20F9469CFC6C, 1001


class _Storage(NamedTuple):
    kind: str  # a key of _DTYPES
    key: str
    size: int  # in elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # this and the strides in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Knows three kinds of names and refuses every other: a pickle can call whatever it can name.

    Tensors come back as their description, so that the pickle has no array to reach into either.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):  # the first until 0.4
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"it calls for {f'{module}.{name}'!r}, and only plain tensors are read")

    def persistent_load(self, pid: tuple) -> _Storage:
        if pid[0] != "storage" or any(pid[5:]):  # a sixth item would make it a view of another storage
            raise pickle.UnpicklingError("it refers to something that is not a storage")
        storage = _Storage(*pid[1:3], pid[4])
        return self.storages.setdefault(storage.key, storage)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name; those of a dictionary inside it as "dictionary.name".

    What is not a tensor is left out. The arrays are contiguous, their own, and of the tensors' types (bfloat16: that
    of ml_dtypes).

    Raises:
      UserError: no such file, not a checkpoint, no tensors in it, or an object that could run code.
    """
    try:
        with open(path, "rb") as file:
            found, storages = (_read_zip if file.peek(4)[:4] == b"PK\x03\x04" else _read_plain)(file)
        tensors = {name: _array(tensor, storages) for name, tensor in _named(found)}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # bytes that are no pickle can raise nearly anything
        raise UserError(f"{path} is not a PyTorch checkpoint that can be read: {error}") from error
    if not tensors:
        raise UserError(f"{path} has no named tensors")
    return tensors


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    """What was saved, and the storages by key."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickled = next((name for name in names if name.split("/")[-1] == "data.pkl"), "data.pkl")
        root = pickled.removesuffix("data.pkl")
        with archive.open(pickled) as description:
            unpickler = _Unpickler(description)
            found = unpickler.load()
        big_endian = f"{root}byteorder" in names and archive.read(f"{root}byteorder") == b"big"
        order = ">" if big_endian else "<"
        return found, {
            key: _numbers(archive.read(f"{root}data/{key}"), storage, order)
            for key, storage in unpickler.storages.items()
        }


def _read_plain(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    """What was saved, and the storages by key: five pickles, then each storage's length and numbers."""
    if (_Unpickler(file).load(), _Unpickler(file).load()) != (_PLAIN_MAGIC, _PLAIN_VERSION):
        raise pickle.UnpicklingError("it does not begin as one")
    _Unpickler(file).load()  # the machine it was written on; the numbers are little endian always
    unpickler = _Unpickler(file)
    found = unpickler.load()
    storages = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise ValueError(f"storage {key} is not of the length described")
        storages[key] = _numbers(file.read(storage.size * np.dtype(_DTYPES[storage.kind]).itemsize), storage, "<")
    return found, storages


def _numbers(data: bytes, storage: _Storage, order: str) -> np.ndarray:
    numbers = np.frombuffer(data, np.dtype(_DTYPES[storage.kind]).newbyteorder(order))
    if len(numbers) != storage.size:
        raise ValueError(f"storage {storage.key} is not of the length described")
    return numbers


def _named(found: Any, prefix: str = "") -> Iterator[tuple[str, _Tensor]]:
    if isinstance(found, Mapping):
        for name, value in found.items():
            if isinstance(value, _Tensor):
                yield f"{prefix}{name}", value
            else:
                yield from _named(value, f"{prefix}{name}.")


def _array(tensor: _Tensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """The view of its storage that a tensor is, copied. NumPy refuses one that would leave the storage."""
    numbers = storages[tensor.storage.key]
    size = numbers.itemsize
    strides = tuple(size * stride for stride in tensor.strides)
    view = np.ndarray(tensor.shape, numbers.dtype, numbers, tensor.offset * size, strides)
    return view.astype(_DTYPES[tensor.storage.kind], order="C")
