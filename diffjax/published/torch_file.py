"""Reads the tensors of a PyTorch checkpoint without PyTorch and without executing code from the file.

A checkpoint is a pickle that describes tensors, and the storages (flat arrays of numbers) of which they are views.
Since PyTorch 1.6, `torch.save` writes both into a zip archive; before, it wrote them one after the other.

The pickle is interpreted here, opcode by opcode, into dictionaries, lists, scalars and descriptions of tensors. Nothing
is imported or called: an object of any class becomes an `_Object`, which has its arguments and attributes. So whole
modules (`torch.save(model)`), TorchScript archives and training checkpoints with the objects of a trainer are read too.
Time and memory are linear in the size of the file for any content. Tensors are read one at a time, on access.
"""

import contextlib
import dataclasses
import functools
import io as bytes_io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import ml_dtypes
import numpy as np

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.published.lazy import LazyTensor

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
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
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


@dataclasses.dataclass(eq=False)
class _Object:
    """An object of a class or a function's result, neither of which is imported.

    Attributes:
      children: items and attributes by name, in dictionaries that are not copied, as several objects may share one.
    """

    children: list[dict[str, Any]] = dataclasses.field(default_factory=lambda: [{}])


_ORDERED = _Name("collections", "OrderedDict")
_REBUILD = (_Name("torch._utils", "_rebuild_tensor"), _Name("torch._utils", "_rebuild_tensor_v2"))  # of 0.3; now
_PARAMETER = (_Name("torch._utils", "_rebuild_parameter"), _Name("torch._utils", "_rebuild_parameter_with_state"))
_FROM_TYPE = _Name("torch._tensor", "_rebuild_from_type_v2")
_MODULE_DICTS = ("_parameters", "_buffers", "_modules")  # attributes of torch.nn.Module, not in names of state_dict()
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
        """Returns the next value: dictionaries, lists, tuples, scalars, names, objects, storages and tensors.

        Raises:
          UnpicklingError: an unknown opcode, or invalid operands.
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
            elif name == "POP":
                stack.pop()
            elif name == "POP_MARK":
                _since_mark(stack)
            elif name == "DUP":
                stack.append(stack[-1])
            elif name == "TUPLE":
                stack.append(tuple(_since_mark(stack)))
            elif name in _TUPLES:
                items = [stack.pop() for _ in range(_TUPLES[name])]
                stack.append(tuple(reversed(items)))
            elif name in ("LIST", "FROZENSET"):
                stack.append(_since_mark(stack))
            elif name == "DICT":
                items = _since_mark(stack)
                stack.append({})
                _set_items(stack[-1], items)
            elif name in ("SETITEM", "SETITEMS"):
                items = _since_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _set_items(stack[-1], items)
            elif name in ("APPEND", "APPENDS", "ADDITEMS"):
                items = [stack.pop()] if name == "APPEND" else _since_mark(stack)
                if not isinstance(stack[-1], _Object):  # such as a deque
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
                stack.append(_result(function, arguments))
            elif name in ("NEWOBJ", "NEWOBJ_EX"):
                del stack[-2 if name == "NEWOBJ" else -3 :]
                stack.append(_Object())
            elif name in ("OBJ", "INST"):
                _since_mark(stack)
                stack.append(_Object())
            elif name == "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Object):
                    _set_state(stack[-1], state)
                elif not isinstance(stack[-1], dict | _Tensor):  # attributes of a dictionary or of a tensor
                    raise pickle.UnpicklingError("it sets attributes of something that is not an object")
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise pickle.UnpicklingError(f"it has the opcode {name}, which checkpoints do not have")
        raise pickle.UnpicklingError("it has no end")


def open_torch_file(path: str | Path) -> dict[str, LazyTensor]:
    """Returns the tensors of a checkpoint by name, those of nested dictionaries as "dictionary.name".

    Values that are not tensors are omitted. The arrays are contiguous copies of the tensors' types (bfloat16: that of
    ml_dtypes). The checksums of a zip archive are verified; the plain format has none.

    Raises:
      UserError: the file does not exist, is not a checkpoint, has no tensors, a tensor larger than its storage, or
        content that expands beyond the size of the file; on access to a tensor, a damaged storage.
    """
    with _reported(path), io.open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        tensors, read = (_open_zip if is_zip else _open_plain)(file, size)
        if sum(tensor.nbytes for tensor in tensors.values()) > _REUSE * size:
            raise ValueError(f"its tensors repeat their storages more than {_REUSE} times")
    if not tensors:
        raise UserError(f"{path} has no named tensors")

    @functools.lru_cache(maxsize=1)  # tied weights, and views of one storage, often follow each other
    def numbers(storage: _Storage) -> np.ndarray:
        with _reported(path), io.open_regular(path) as file:
            return read(file, storage)

    return {
        name: LazyTensor(
            tensor.shape, np.dtype(_DTYPES[tensor.storage.kind]), functools.partial(_array, tensor, numbers)
        )
        for name, tensor in tensors.items()
    }


@contextlib.contextmanager
def _reported(path: str | Path) -> Iterator[None]:
    """Raises UserError in the place of any error of reading a file."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # an invalid pickle can raise nearly any exception
        reason = excerpt(str(error)) or type(error).__name__
        raise UserError(f"{path} is not a PyTorch checkpoint that can be read: {reason}") from error


_ReadStorage = Callable[[BinaryIO, _Storage], np.ndarray]


def _open_zip(file: BinaryIO, size: int) -> tuple[dict[str, _Tensor], _ReadStorage]:
    """Returns the tensors by name, and a function that reads a storage from the opened file."""

    def entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise ValueError(f"its entry {name!r} is compressed, or longer than the file")
        return info

    def content(archive: zipfile.ZipFile, name: str) -> bytes:
        return archive.read(entry(archive, name))

    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickled = next((name for name in names if name.split("/")[-1] == "data.pkl"), "data.pkl")
        root = pickled.removesuffix("data.pkl")
        description = content(archive, pickled)
        interpreted = _Pickle(bytes_io.BytesIO(description), len(description))
        tensors = dict(_named(interpreted.load(), len(description)))
        storages = interpreted.storages
        if sum(storage.nbytes for storage in storages.values()) > size:
            raise ValueError("its storages are longer than the file")
        for key, storage in storages.items():
            if entry(archive, f"{root}data/{key}").file_size != storage.nbytes:
                raise ValueError(f"storage {key} is not of the length described")
        big_endian = f"{root}byteorder" in names and content(archive, f"{root}byteorder") == b"big"
        order: Literal["<", ">"] = ">" if big_endian else "<"

    def read(file: BinaryIO, storage: _Storage) -> np.ndarray:
        with zipfile.ZipFile(file) as archive:
            return _numbers(content(archive, f"{root}data/{storage.key}"), storage, order)

    return tensors, read


def _open_plain(file: BinaryIO, size: int) -> tuple[dict[str, _Tensor], _ReadStorage]:
    """Returns the same of five pickles, then each storage's length and numbers."""
    interpreted = _Pickle(file, size)
    if (interpreted.load(), interpreted.load()) != (_PLAIN_MAGIC, _PLAIN_VERSION):
        raise pickle.UnpicklingError("it does not begin as one")
    interpreted.load()  # properties of the writing machine; numbers are always little endian
    start = file.tell()
    described = interpreted.load()
    tensors = dict(_named(described, file.tell() - start))
    positions = {}
    for key in _expect(interpreted.load(), list):
        storage = interpreted.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.size or file.tell() + storage.nbytes > size:
            raise ValueError(f"storage {key} is not of the length described")
        positions[key] = file.tell()
        file.seek(storage.nbytes, 1)
    if missing := interpreted.storages.keys() - positions.keys():
        raise ValueError(f"storage {min(missing)} is missing")

    def read(file: BinaryIO, storage: _Storage) -> np.ndarray:
        file.seek(positions[storage.key])
        return _numbers(file.read(storage.nbytes), storage, "<")

    return tensors, read


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


def _set_items(target: Any, items: list) -> None:
    """Sets keys and values, one after the other; keys become text. Items with other keys than text are omitted."""
    children = _children(target)
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str | int | float | None):  # hashing and comparing these takes bounded time
            children[f"{key}"] = value


def _children(target: Any) -> dict[str, Any]:
    return target.children[0] if isinstance(target, _Object) else _expect(target, dict)


def _set_state(target: _Object, state: Any) -> None:
    """Adds attributes: a dictionary, or one and those of the slots."""
    target.children += [part for part in (state if isinstance(state, tuple) else (state,)) if isinstance(part, dict)]


def _known(name: _Name) -> _Name | str:
    """Returns the type of a storage for its name, and other names unchanged."""
    return name.attribute if name.module == "torch" and name.attribute in _DTYPES else name


def _result(function: Any, arguments: tuple) -> Any:
    """Returns the result of a function that rebuilds tensors; of any other function, an object without attributes."""
    if function == _ORDERED:
        result = {}
        for pair in _expect(arguments[0], list) if arguments else ():  # Python 2 writes the pairs as an argument
            key, value = pair
            _set_items(result, [key, value])
        return result
    if function == _FROM_TYPE:  # of a subclass of tensors
        function, _, arguments, *_ = arguments
    if function in _PARAMETER:
        return _expect(arguments[0], _Tensor)
    if function in _REBUILD:
        return _rebuilt(arguments)
    if not isinstance(function, _Name | _Object | str):  # str: the type of a storage
        raise pickle.UnpicklingError("it calls for something that is not a function")
    return _Object()


def _rebuilt(arguments: tuple) -> _Tensor:
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
            continue
        parts = value.children if isinstance(value, _Object) else [value] if isinstance(value, dict) else []
        for part in reversed(parts):
            left -= (len(part) + 1) * (len(path) + 2)
            if left < 0 or (left := left - sum(map(len, part))) < 0:
                raise ValueError("its references multiply beyond the size of the file")
            for key, child in reversed(list(part.items())):
                inside = isinstance(value, _Object) and key in _MODULE_DICTS
                stack.append((path if inside else f"{path}.{key}" if path else key, child))


def _array(tensor: _Tensor, numbers_of: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    """Returns a copy of the view of the storage that a tensor describes."""
    numbers = numbers_of(tensor.storage)
    size = numbers.itemsize
    strides = tuple(size * stride for stride in tensor.strides)
    view = np.ndarray(tensor.shape, numbers.dtype, numbers, tensor.offset * size, strides)
    return view.astype(_DTYPES[tensor.storage.kind], order="C")
