"""Reads the tensors of a PyTorch checkpoint without PyTorch and without executing code from the file.

A checkpoint is a pickle that describes tensors, and the storages (flat arrays of numbers) of which they are views.
Since PyTorch 1.6, `torch.save` writes both into a zip archive; before, it wrote them one after the other.

The pickle is interpreted here, opcode by opcode, into dictionaries, lists, scalars and descriptions of tensors. Nothing
is imported or called. Time and memory are linear in the size of the file for any content.
"""

import io as bytes_io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import ml_dtypes
import numpy as np

from diffjax import io
from diffjax.errors import UserError, excerpt

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
_REUSE = 8  # maximum total size of tensors in units of the file size; tied weights repeat their storage
_NAME_SHARE = 16  # maximum characters of all names per byte of the pickle
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
    "BINBYTES8",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Storage(NamedTuple):
    kind: str  # a key of _DTYPES
    key: str
    size: int  # in elements

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(_DTYPES[self.kind]).itemsize


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # this and the strides in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(_DTYPES[self.storage.kind]).itemsize


class _Name(NamedTuple):
    """Name of a global in the pickle; compared with the known names, never imported."""

    module: str
    attribute: str


_ORDERED = _Name("collections", "OrderedDict")
_REBUILD = (_Name("torch._utils", "_rebuild_tensor"), _Name("torch._utils", "_rebuild_tensor_v2"))  # of 0.3; now
_MARK = _Name("", "")


class _Pickle:
    """Interprets successive pickles in a file of `limit` bytes."""

    def __init__(self, file: BinaryIO, limit: int):
        self._file, self._limit = file, limit
        self.storages: dict[str, _Storage] = {}

    # --- file interface for pickletools, whose requested sizes come from the pickle and may be too large ---

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._limit))

    def readline(self) -> bytes:
        return self._file.readline()

    def load(self) -> Any:
        """Returns the next value: dictionaries, lists, tuples, scalars, names, storages and tensors.

        Raises:
          UnpicklingError: an opcode or a name that plain tensors do not need, or invalid operands.
        """
        stack, memo, copied = [], {}, 0
        for opcode, argument, _ in pickletools.genops(cast(BinaryIO, self)):  # it reads with these two methods
            name = opcode.name
            if name in _LITERALS:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[argument])
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name == "MARK":
                stack.append(_MARK)
            elif name == "TUPLE":
                stack.append(tuple(_since_mark(stack)))
            elif name in _TUPLES:
                items = [stack.pop() for _ in range(_TUPLES[name])]
                stack.append(tuple(reversed(items)))
            elif name == "LIST":
                stack.append(_since_mark(stack))
            elif name == "DICT":
                items = _since_mark(stack)
                stack.append({})
                _set_items(stack, items)
            elif name in ("SETITEM", "SETITEMS"):
                items = _since_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _set_items(stack, items)
            elif name in ("APPEND", "APPENDS"):
                items = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
                _expect(stack[-1], list).extend(items)
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                names = str(argument).split(" ", 1) if name == "GLOBAL" else [stack.pop(-2), stack.pop()]
                stack.append(_known(_Name(*(_expect(part, str) for part in names))))
            elif name == "BINPERSID":
                storage = _storage(stack.pop())
                if self.storages.setdefault(storage.key, storage) != storage:
                    raise pickle.UnpicklingError(f"storage {storage.key!r} is of two types or lengths")
                stack.append(storage)
            elif name == "REDUCE":
                arguments, function = _expect(stack.pop(), tuple), stack.pop()
                copied += len(arguments[0]) if function == _ORDERED and arguments else 0
                if copied > self._limit:
                    raise pickle.UnpicklingError("it copies one list again and again")
                stack.append(_rebuilt(function, arguments))
            elif name == "BUILD":  # attributes of a dictionary, such as the versions of modules
                stack.pop()
                _expect(stack[-1], dict)
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise pickle.UnpicklingError(f"it has the opcode {name}, and only plain tensors are read")
        raise pickle.UnpicklingError("it has no end")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint by name, those of nested dictionaries as "dictionary.name".

    Values that are not tensors are omitted. The arrays are contiguous copies of the tensors' types (bfloat16: that of
    ml_dtypes). The checksums of a zip archive are verified; the plain format has none.

    Raises:
      UserError: the file does not exist, is not a checkpoint, has no tensors, an object that could run code, a tensor
        larger than its storage, or content that expands beyond the size of the file.
    """
    try:
        with io.open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            tensors, storages = (_read_zip if is_zip else _read_plain)(file, size)
        if sum(tensor.nbytes for tensor in tensors.values()) > _REUSE * size:
            raise ValueError(f"its tensors repeat their storages more than {_REUSE} times")
        arrays = {name: _array(tensor, storages) for name, tensor in tensors.items()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # an invalid pickle can raise nearly any exception
        reason = excerpt(str(error)) or type(error).__name__
        raise UserError(f"{path} is not a PyTorch checkpoint that can be read: {reason}") from error
    if not arrays:
        raise UserError(f"{path} has no named tensors")
    return arrays


def _read_zip(file: BinaryIO, size: int) -> tuple[dict[str, _Tensor], dict[str, np.ndarray]]:
    """Returns the tensors by name and the storages by key."""
    with zipfile.ZipFile(file) as archive:

        def content(name: str) -> bytes:
            entry = archive.getinfo(name)
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise ValueError(f"its entry {name!r} is compressed, or longer than the file")
            return archive.read(entry)

        names = archive.namelist()
        pickled = next((name for name in names if name.split("/")[-1] == "data.pkl"), "data.pkl")
        root = pickled.removesuffix("data.pkl")
        description = content(pickled)
        interpreted = _Pickle(bytes_io.BytesIO(description), len(description))
        tensors = dict(_named(interpreted.load(), len(description)))
        if sum(storage.nbytes for storage in interpreted.storages.values()) > size:
            raise ValueError("its storages are longer than the file")
        big_endian = f"{root}byteorder" in names and content(f"{root}byteorder") == b"big"
        order: Literal["<", ">"] = ">" if big_endian else "<"
        return tensors, {
            key: _numbers(content(f"{root}data/{key}"), storage, order) for key, storage in interpreted.storages.items()
        }


def _read_plain(file: BinaryIO, size: int) -> tuple[dict[str, _Tensor], dict[str, np.ndarray]]:
    """Returns the tensors by name and the storages by key: five pickles, then each storage's length and numbers."""
    interpreted = _Pickle(file, size)
    if (interpreted.load(), interpreted.load()) != (_PLAIN_MAGIC, _PLAIN_VERSION):
        raise pickle.UnpicklingError("it does not begin as one")
    interpreted.load()  # properties of the writing machine; numbers are always little endian
    start = file.tell()
    described = interpreted.load()
    tensors = dict(_named(described, file.tell() - start))
    storages = {}
    for key in _expect(interpreted.load(), list):
        storage = interpreted.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.size or storage.nbytes > size:
            raise ValueError(f"storage {key} is not of the length described")
        storages[key] = _numbers(file.read(storage.nbytes), storage, "<")
    return tensors, storages


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or value is _MARK:
        raise pickle.UnpicklingError(f"it has a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _since_mark(stack: list) -> list:
    """Removes the values above the last mark, and the mark, and returns the values."""
    items = []
    while (value := stack.pop()) is not _MARK:
        items.append(value)
    return items[::-1]


def _set_items(stack: list, items: list) -> None:
    """Sets keys and values, one after the other, in the dictionary on the stack; keys become text."""
    target = _expect(stack[-1], dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | None):  # hashing and comparing these takes bounded time
            raise pickle.UnpicklingError("it has a key that is neither text nor a number")
        target[f"{key}"] = value


def _known(name: _Name) -> _Name | str:
    """Returns a name that plain tensors need, or the type of a storage; raises UnpicklingError for others."""
    if name == _ORDERED or name in _REBUILD:
        return name
    if name.module == "torch" and name.attribute in _DTYPES:
        return name.attribute
    raise pickle.UnpicklingError(f"it calls for {f'{name.module}.{name.attribute}'!r}, and only plain tensors are read")


def _rebuilt(function: Any, arguments: tuple) -> Any:
    if function == _ORDERED:
        stack = [{}]
        for pair in _expect(arguments[0], list) if arguments else ():  # Python 2 writes the pairs as an argument
            key, value = pair
            _set_items(stack, [key, value])
        return stack[0]
    if function not in _REBUILD:
        raise pickle.UnpicklingError("it calls for something that is not a function")
    storage, offset, shape, strides = arguments[:4]
    _expect(storage, _Storage)
    for numbers in (shape, strides, (offset,)):
        if len(_expect(numbers, tuple)) > 64 or not all(_is_count(number) for number in numbers):
            raise pickle.UnpicklingError("it has a tensor whose shape, strides or offset are not counts")
    if len(shape) != len(strides):
        raise pickle.UnpicklingError("it has a tensor whose shape and strides differ in length")
    if math.prod(shape) > storage.size:
        raise pickle.UnpicklingError(f"it has a tensor of shape {shape}, larger than its storage of {storage.size}")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.size:
        raise pickle.UnpicklingError(f"it has a tensor that exceeds its storage of {storage.size}")
    return _Tensor(storage, offset, shape, strides)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _storage(pid: Any) -> _Storage:
    """Returns the storage of a persistent id: ("storage", type, key, device, size) and None or nothing."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or any(pid[5:]):
        raise pickle.UnpicklingError(
            "it refers to something that is not a storage"
        )  # or to a view of one, in old files
    if pid[1] not in list(_DTYPES) or not isinstance(pid[2], str) or not _is_count(pid[4]):
        raise pickle.UnpicklingError("it has a storage without a type, a key or a length")
    return _Storage(pid[1], pid[2], pid[4])


def _numbers(data: bytes, storage: _Storage, order: Literal["<", ">"]) -> np.ndarray:
    if len(data) != storage.nbytes:
        raise ValueError(f"storage {storage.key} is not of the length described")
    return np.frombuffer(data, np.dtype(_DTYPES[storage.kind]).newbyteorder(order))


def _named(content: Any, size: int) -> Iterator[tuple[str, _Tensor]]:
    """Yields the tensors of nested dictionaries with their paths, in the order of the file.

    A dictionary may be referenced several times, and nested references multiply exponentially. So the total length of
    all paths is limited relative to `size`, the size of the pickle in bytes.
    """
    left, stack = _NAME_SHARE * size, [("", content)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, _Tensor):
            if not path.isprintable():
                raise ValueError(f"a tensor's name is not text: {path!r}")
            yield path, value
        elif isinstance(value, Mapping):
            left -= len(value) * (len(path) + 2)
            if left < 0 or (left := left - sum(map(len, value))) < 0:
                raise ValueError("its references multiply beyond the size of the file")
            stack += [(f"{path}.{key}" if path else key, child) for key, child in reversed(list(value.items()))]


def _array(tensor: _Tensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns a copy of the view of the storage that a tensor describes."""
    numbers = storages[tensor.storage.key]
    size = numbers.itemsize
    strides = tuple(size * stride for stride in tensor.strides)
    view = np.ndarray(tensor.shape, numbers.dtype, numbers, tensor.offset * size, strides)
    return view.astype(_DTYPES[tensor.storage.kind], order="C")
