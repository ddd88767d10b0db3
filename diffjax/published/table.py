"""Names and layouts of the tensors of a published network, read in both directions.

The parameters of a network of this package are walked, and the table of a published family names the modules of the
file that hold them. So one table imports and exports, and tensors that are missing or left over are found from either
side.

A table maps patterns of module paths, such as r"down_(\\d+)_block_(\\d+)/conv_0", to names of modules of the file:

    {
        "conv_in": "input_blocks.0.0",                      # a module
        r"block_(\\d+)": Block("resblocks.{0}", {...}),      # a block, with the table of what is inside it
        "attention/qkv": fused("to_q", "to_k", "to_v"),     # modules whose outputs are concatenated
        "embedding": Sum(("text_proj", "image_proj")),      # linear layers whose outputs are added
        "attention/place": Tensor("positional_embedding"),  # a tensor that is not of a module
        "latents/mean": Constant(0.0),                      # a parameter that the file does not have
        "pos_embed": Fixed("pos_embed", value),             # a tensor of the file, not a parameter of ours
    }

Names may have the groups of their pattern, as in `str.format`, and blocks may have a function of them, as integers
where they are digits.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax import numpy as jnp

from diffjax.errors import UserError, excerpt
from diffjax.published.lazy import LazyTensor

Order = Callable[[int], np.ndarray]  # number of channels -> for each of ours, the index in the file
Shape = tuple[int, ...]

_SUFFIXES = {"kernel": ".weight", "bias": ".bias", "scale": ".weight", "embedding": ".weight"}
_MAX_NAMES = 3  # in an error message


@dataclasses.dataclass(frozen=True)
class Module:
    """Modules of the file that hold one module of ours: a linear layer, a convolution, a norm or an embedding table.

    Attributes:
      names: modules of the file; the outputs of several are concatenated.
      part: (i, n): the i-th of n equal parts of the outputs of `names[0]`.
      order, input_order: order of the outputs and of the inputs in the file; None: ours.
      dims: dimensions of the weight of a linear layer when it is written: 2 (Linear), 3 (Conv1d) or 4 (Conv2d). Any of
        them is read.
      suffixes: from names of our leaves to the ends of the names of tensors.
      copies: other modules of the file with the weights of `names[0]`.
    """

    names: tuple[str, ...]
    part: tuple[int, int] = (0, 1)
    order: Order | None = None
    input_order: Order | None = None
    dims: int = 2
    suffixes: Mapping[str, str] = dataclasses.field(default_factory=lambda: _SUFFIXES)
    copies: tuple[str, ...] = ()

    def tensors(self, leaf: str) -> tuple[str, ...] | None:
        """Returns the names of the tensors of a leaf; None: the module does not have the leaf."""
        return tuple(name + self.suffixes[leaf] for name in self.names) if leaf in self.suffixes else None

    def read(self, leaf: str, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """Returns a leaf from its tensors."""
        kernel = leaf == "kernel"
        value = np.concatenate([_kernel(tensor, shape) if kernel else tensor for tensor in tensors], axis=-1)
        index, count = self.part
        value = np.split(value, count, axis=-1)[index]
        if self.order:
            value = value[..., self.order(value.shape[-1])]
        return value[..., self.input_order(value.shape[-2]), :] if self.input_order and kernel else value

    def write(self, leaf: str, value: np.ndarray) -> list[np.ndarray]:
        """Returns the tensors of a leaf, or its part of a tensor."""
        kernel = leaf == "kernel"
        if self.input_order and kernel:
            value = value[..., np.argsort(self.input_order(value.shape[-2])), :]
        if self.order:
            value = value[..., np.argsort(self.order(value.shape[-1]))]
        parts = np.split(value, len(self.names), axis=-1)
        return [_weight(part, self.dims) for part in parts] if kernel else parts


@dataclasses.dataclass(frozen=True)
class Sum:
    """Linear layers of the file whose outputs are added: one layer of ours, on their concatenated inputs.

    Ours has one bias, their sum. It is written as the first one's, and the others are zero.

    Attributes:
      names: modules of the file, with inputs of one width.
    """

    names: tuple[str, ...]
    part: ClassVar[tuple[int, int]] = (0, 1)

    def tensors(self, leaf: str) -> tuple[str, ...] | None:
        """Returns the names of the tensors of a leaf; None: the layer does not have the leaf."""
        return tuple(name + _SUFFIXES[leaf] for name in self.names) if leaf in ("kernel", "bias") else None

    def read(self, leaf: str, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """Returns a leaf from its tensors."""
        return np.concatenate(tensors, axis=1).T if leaf == "kernel" else np.sum(tensors, axis=0)

    def write(self, leaf: str, value: np.ndarray) -> list[np.ndarray]:
        """Returns the tensors of a leaf."""
        if leaf == "kernel":
            return [part.T for part in np.split(value, len(self.names))]
        return [value, *(np.zeros_like(value) for _ in self.names[1:])]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the file that holds one leaf of ours, such as position embeddings.

    Attributes:
      name: name in the file.
      to_leaf, to_tensor: from the tensor in the file to the leaf, and the inverse.
    """

    name: str
    to_leaf: Callable[[np.ndarray], np.ndarray] = lambda tensor: tensor
    to_tensor: Callable[[np.ndarray], np.ndarray] = lambda value: value
    part: ClassVar[tuple[int, int]] = (0, 1)

    def tensors(self, leaf: str) -> tuple[str, ...] | None:
        """Returns the name of the tensor; None: the pattern is not the whole path of a leaf."""
        return None if leaf else (self.name,)

    def read(self, leaf: str, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """Returns the leaf from its tensor."""
        return self.to_leaf(tensors[0])

    def write(self, leaf: str, value: np.ndarray) -> list[np.ndarray]:
        """Returns the tensor of the leaf."""
        return [self.to_tensor(value)]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A leaf of ours that the file does not have. It is left out when a file is written.

    Attributes:
      value: of all its values, or a function of its shape.
    """

    value: float | Callable[[Shape], np.ndarray]
    part: ClassVar[tuple[int, int]] = (0, 1)

    def tensors(self, leaf: str) -> tuple[str, ...] | None:
        """Returns no names; None: the pattern is not the whole path of a leaf."""
        return None if leaf else ()

    def read(self, leaf: str, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """Returns an array of the value."""
        return self.value(shape) if callable(self.value) else np.full(shape, self.value)

    def write(self, leaf: str, value: np.ndarray) -> list[np.ndarray]:
        """Returns no tensor."""
        return []


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A tensor of the file that is a function of the config instead of a parameter, such as position embeddings.

    Its pattern in the table matches no path. A file without it is read; one with other values is not.
    """

    name: str
    value: np.ndarray


class Block(NamedTuple):
    """A module with modules inside: the start of their names, and their table."""

    prefix: str | Callable[..., str]
    table: "Table"


Table = Mapping[str, str | Module | Sum | Tensor | Constant | Fixed | Block]  # a string is Module((name,))


def fused(*names: str, dims: int = 2) -> Module:
    """Returns modules of the file whose outputs are concatenated in ours, such as queries, keys and values."""
    return Module(names, dims=dims)


def convolution(name: str, **options: Any) -> Module:
    """Returns a linear layer of ours that the file has as a 1x1 convolution."""
    return Module((name,), dims=4, **options)


def patches(name: str, patch: int) -> Table:
    """Returns the table of a linear layer of ours on patches, which the file has as a strided convolution.

    Args:
      name: module of the file.
      patch: side of a patch.
    """

    def to_tensor(value: np.ndarray) -> np.ndarray:
        return value.reshape(patch, patch, -1, value.shape[-1]).transpose(3, 2, 0, 1)

    def to_leaf(tensor: np.ndarray) -> np.ndarray:
        return tensor.transpose(2, 3, 1, 0).reshape(-1, len(tensor))

    return {"kernel": Tensor(f"{name}.weight", to_leaf, to_tensor), "bias": Tensor(f"{name}.bias")}


def by_head(parts: int, *, heads: int = 1, head_channels: int | None = None) -> Order:
    """Returns the order of fused outputs that the file stores head by head, [head 0: q, k, v; head 1: ...].

    Ours are part by part, [q of all heads, k, v].

    Args:
      parts: 3 for queries, keys and values; 2 for keys and values.
      heads: number of heads.
      head_channels: channels per head, instead of `heads`.
    """

    def order(outputs: int) -> np.ndarray:
        depth = head_channels or outputs // (parts * heads)
        return np.arange(outputs).reshape(-1, parts, depth).transpose(1, 0, 2).ravel()

    return order


def read(
    table: Table,
    shapes: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    *,
    network: str,
    ignored: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Reads the parameters of a network from the tensors of a file, one at a time.

    Args:
      table: names of the family.
      shapes: shape of every parameter by path, such as `jax.eval_shape` of the network's `init`, flattened.
      tensors: tensors of the file by name.
      network: source of the tensors and the network, for error messages: "FILE is not the UNet of its config".
      ignored: regular expressions of names that are not parameters.

    Returns:
      Parameters by path, float32 where the parameter is.

    Raises:
      UserError: a tensor is missing, left over, of another shape, not finite, or differs from its copy.
    """
    return dict(iterate(table, shapes, tensors, network=network, ignored=ignored))


def iterate(
    table: Table,
    shapes: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    *,
    network: str,
    ignored: Sequence[str] = (),
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the paths and values of `read` in the order of `shapes`, so that one is in memory at a time."""
    stored = {path: _find(table, path) for path in shapes}
    needed = {name for each in stored.values() for name in (*each.tensors, *each.copies)}
    if missing := sorted(needed - tensors.keys()):
        raise UserError(f"{network}: {_list(missing)} missing")
    skipped = re.compile("|".join(f"(?:{pattern})" for pattern in ignored)) if ignored else None
    fixed = dict(_fixed(table))
    unused = sorted(n for n in tensors.keys() - needed - fixed.keys() if not (skipped and skipped.fullmatch(n)))
    if unused:
        raise UserError(f"{network}: {_list(unused)} not part of that network")
    for name, value in fixed.items():
        if name in tensors and not _same(tensors[name].read(), value):
            raise UserError(f"{network}: {name} has other values than that network's")
    for path, leaf in shapes.items():
        each, shape = stored[path], tuple(leaf.shape)
        sources = [tensors[name] for name in each.tensors]
        for name, tensor in zip(each.tensors, sources, strict=True):
            if not jnp.issubdtype(tensor.dtype, jnp.floating):  # such as quantized weights
                raise UserError(f"{network}: {name} is of type {tensor.dtype}, and must be floating point")
        try:
            value = each.entry.read(each.leaf, [tensor.read() for tensor in sources], shape)
        except (ValueError, IndexError):  # shapes that do not fit one another
            value = None
        if value is None or value.shape != shape:
            described = ", ".join("x".join(map(str, tensor.shape)) or "a number" for tensor in sources)
            wanted = "x".join(map(str, shape)) or "a number"
            raise UserError(f"{network}: {each.tensors[0]} is {described}, and does not fit {path}, {wanted}")
        with np.errstate(over="ignore"):  # the next line reports numbers beyond float32
            value = np.asarray(value, leaf.dtype, order="C")
        if not np.isfinite(value).all():
            raise UserError(f"{network}: {each.tensors[0]} has values that are not finite; download the file again")
        for name in each.copies:
            if not np.array_equal(tensors[name].read(), sources[0].read()):
                raise UserError(f"{network}: {name} must be equal to {each.tensors[0]}, and has other values")
        yield path, value


def write(table: Table, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors of a file, contiguous, for the parameters of a network by path: the inverse of `read`."""
    return {name: tensor.read() for name, tensor in tensors_of(table, params).items()}


def tensors_of(table: Table, params: Mapping[str, np.ndarray]) -> dict[str, LazyTensor]:
    """Returns the tensors of `write`, each of which is computed when it is read, so that one is in memory at a time."""
    tensors = {name: LazyTensor.of(value) for name, value in _fixed(table)}
    parts: dict[str, dict[int, Callable[[], np.ndarray]]] = {}
    for path, value in params.items():
        stored = _find(table, path)
        for i, name in enumerate(stored.tensors):
            parts.setdefault(name, {})[stored.entry.part[0]] = functools.partial(_part, stored, value, i)
        for name in stored.copies:
            parts[name] = parts[stored.tensors[0]]
    return tensors | {name: _concatenated([pieces[i] for i in range(len(pieces))]) for name, pieces in parts.items()}


def _part(stored: "_Stored", value: np.ndarray, i: int) -> np.ndarray:
    """Returns a leaf's tensor, or its part of a tensor, where the leaf has several tensors: the i-th."""
    return stored.entry.write(stored.leaf, np.asarray(value))[i]


def _concatenated(parts: Sequence[Callable[[], np.ndarray]]) -> LazyTensor:
    """Returns the tensor of parts that are concatenated."""

    def read() -> np.ndarray:
        return np.asarray(np.concatenate([part() for part in parts]) if len(parts) > 1 else parts[0](), order="C")

    arrays = [part() for part in parts]  # mostly views
    shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:]) if len(arrays) > 1 else arrays[0].shape
    return LazyTensor(shape, arrays[0].dtype, read)


def names(table: Table, shapes: Iterable[str]) -> dict[str, str]:
    """Returns the names of a file's tensors, each with the path of a parameter that it holds."""
    stored = {path: _find(table, path) for path in shapes}
    return {name: path for path, each in stored.items() for name in (*each.tensors, *each.copies)}


class _Stored(NamedTuple):
    """A leaf of ours in the file: its entry, its name in the module, its tensors, and copies of the first."""

    entry: Module | Sum | Tensor | Constant
    leaf: str
    tensors: tuple[str, ...]
    copies: tuple[str, ...]


def _find(table: Table, path: str) -> _Stored:
    """Returns where a leaf is stored. Raises LookupError for a path that the table does not have."""
    for prefix, entry, leaf, groups in _entries(table, path):
        if (names := entry.tensors(leaf)) is not None:
            copies = [name + entry.suffixes[leaf] for name in entry.copies] if isinstance(entry, Module) else []
            stored, copied = (tuple(prefix + name.format(*groups) for name in each) for each in (names, copies))
            return _Stored(entry, leaf, stored, copied)
    raise LookupError(f"the table has no parameter {path}")


def _entries(
    table: Table, path: str, prefix: str = ""
) -> Iterator[tuple[str, Module | Sum | Tensor | Constant, str, tuple[str | Any, ...]]]:
    """Yields the entries whose pattern is the start of a path: prefix of their names, entry, rest, groups."""
    for pattern, entry in table.items():
        match = re.match(rf"{pattern}(?:/|$)", path)
        if not match or isinstance(entry, Fixed):
            continue
        rest = path[match.end() :]
        if isinstance(entry, Block):
            numbers = [int(group) if group and group.isdigit() else group for group in match.groups()]
            start = entry.prefix(*numbers) if callable(entry.prefix) else entry.prefix.format(*numbers)
            yield from _entries(entry.table, rest, f"{prefix}{start}." if start else prefix)
        else:
            yield prefix, Module((entry,)) if isinstance(entry, str) else entry, rest, match.groups()


def _fixed(table: Table, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and value of the fixed tensors of a table, and of its blocks whose prefix is a name."""
    for entry in table.values():
        if isinstance(entry, Fixed):
            yield prefix + entry.name, entry.value
        elif isinstance(entry, Block) and isinstance(entry.prefix, str) and "{" not in entry.prefix:
            yield from _fixed(entry.table, f"{prefix}{entry.prefix}." if entry.prefix else prefix)


def _same(tensor: np.ndarray, value: np.ndarray) -> bool:
    """Returns whether an array has the given values, within half precision."""
    return tensor.shape == value.shape and np.allclose(tensor.astype(np.float32), value, atol=2e-3)


def _kernel(tensor: np.ndarray, shape: Shape) -> np.ndarray:
    """Returns a kernel [I, O] or [h, w, I, O] from a weight [O, I], [O, I, 1], [O, I, 1, 1] or [O, I, h, w]."""
    if len(shape) == 2 and tensor.ndim > 2:
        if tensor.shape[2:] != (1,) * (tensor.ndim - 2):
            raise ValueError
        tensor = tensor.reshape(tensor.shape[:2])
    return tensor.T if tensor.ndim == 2 else np.moveaxis(tensor, (0, 1), (-1, -2))


def _weight(kernel: np.ndarray, dims: int) -> np.ndarray:
    """Returns the inverse of `_kernel`; `dims` are those of the weight of a kernel [I, O]."""
    weight = np.moveaxis(kernel, (-1, -2), (0, 1))
    return weight.reshape(*weight.shape, *(1,) * (dims - 2)) if kernel.ndim == 2 else weight


def _list(names: Sequence[str]) -> str:
    """Returns names for an error message, with the verb."""
    shown = ", ".join(excerpt(name) for name in names[:_MAX_NAMES])
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{shown}{more} {'are' if len(names) > 1 else 'is'}"
