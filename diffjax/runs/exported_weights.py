"""Exports the weights of a run to one safetensors file, which is smaller and which other libraries can read.

The file's metadata has "step", "format" ("np") and "sha256": the SHA-256 of the step and of the tensors' names, types,
shapes and bytes, see `checksum`. The same variables give the same file, byte for byte.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from jax import numpy as jnp

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.models.parameter_paths import flatten, path_of
from diffjax.published import safetensors_file
from diffjax.typing import Variables

HALF_TYPES = ("float16", "bfloat16")  # that weights of type float32 may be stored as


def save(path: Path, variables: Variables, step: int) -> None:
    """Writes variables, named by paths such as "params/model/Dense_0/kernel", and their step. The write is atomic.

    Raises:
      OSError: the file cannot be written.
    """
    leaves = flatten(variables)
    save_leaves(path, leaves, ((name, np.asarray(leaves[name])) for name in sorted(leaves)), step)


def save_leaves(path: Path, shapes: Mapping[str, Any], leaves: Iterable[tuple[str, np.ndarray]], step: int) -> None:
    """Writes the file of `save` from variables that are computed one at a time.

    Args:
      path: file to write.
      shapes: values with the shape and the type of each variable by path, such as `jax.ShapeDtypeStruct`.
      leaves: path and value of each variable, sorted by path.
      step: step of the variables.

    Raises:
      OSError: the file cannot be written.
    """
    digest = _described({name: (np.dtype(leaf.dtype), leaf.shape) for name, leaf in shapes.items()}, step)

    def hashed() -> Iterator[tuple[str, np.ndarray]]:
        for name, leaf in leaves:
            digest.update(safetensors_file.bytes_of(leaf))
            yield name, leaf

    metadata = {"format": "np", "sha256": "0" * 64, "step": str(step)}  # the hash is known when all is written
    with io.atomic_path(path) as temporary:
        safetensors_file.write(temporary, shapes, hashed(), metadata)
        with temporary.open("r+b") as file:
            file.seek(file.read(200).index(metadata["sha256"].encode()))  # metadata is first
            file.write(digest.hexdigest().encode())


def load(path: Path, template: Variables, *, omitted: tuple[str, ...] = ()) -> Variables:
    """Returns the variables of a file, with the structure, shapes and types of `template` (jax.ShapeDtypeStruct).

    The file may have `half_precision` in the place of float32. It may have the variables whose paths start with one of
    `omitted`, as older versions wrote them, or not; they are not returned.

    A file without a checksum, as older versions wrote, is accepted, with a line on standard error.

    Raises:
      UserError: the file cannot be read, has another model, or does not match its checksum.
    """
    template = _without(template, omitted)
    expected = flatten(template)
    with _opened(path) as file:
        names = set(file.keys())
        if differing := sorted(name for name in names ^ expected.keys() if not name.startswith(omitted)):
            name = excerpt(differing[0])
            raise UserError(f"{path} does not fit its config's model: {name} is in one of them only")
        metadata = file.metadata() or {}
    tensors = {name: _get(path, name) for name in names}
    for name, leaf in expected.items():
        for actual, wanted in ((tensors[name].shape, leaf.shape), (tensors[name].dtype, leaf.dtype)):
            if actual != wanted and not (wanted == np.float32 and str(actual) in HALF_TYPES):
                raise UserError(f"{path} does not fit its config's model: {name} is {actual} and not {wanted}")
    if "sha256" not in metadata:
        print(f"{path} has no checksum, as older exports: its values are not verified; export again", file=sys.stderr)
    elif metadata["sha256"] != checksum(tensors, _step(path, metadata)):
        raise UserError(f"{path} is damaged: its contents do not have its checksum; export it again")
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: tensors[path_of(keys)].astype(leaf.dtype, copy=False), template
    )


def _without(tree: Any, omitted: tuple[str, ...], prefix: str = "") -> Any:
    """Returns a tree without the subtrees whose paths start with one of `omitted`."""
    if not isinstance(tree, Mapping):
        return tree
    paths = {name: f"{prefix}{name}/" for name in tree}
    return {name: _without(tree[name], omitted, path) for name, path in paths.items() if not path.startswith(omitted)}


def half_precision(variables: Variables, dtype: str) -> Variables:
    """Returns variables with those of type float32 rounded to `dtype`, one of `HALF_TYPES`.

    Raises:
      UserError: a value is out of the range of the type.
    """

    def rounded(keys, leaf):
        leaf = np.asarray(leaf)
        if leaf.dtype != np.float32:
            return leaf
        with np.errstate(over="ignore"):
            result = leaf.astype(jnp.dtype(dtype))
        if not np.isfinite(result.astype(np.float32)).all():
            raise UserError(f"--dtype={dtype}: {path_of(keys)} has values out of its range; choose another type")
        return result

    return jax.tree_util.tree_map_with_path(rounded, variables)


def step_of(path: Path) -> int:
    """Returns the step of a file's variables. Raises UserError if the file is damaged."""
    with _opened(path) as file:
        return _step(path, file.metadata() or {})


def checksum(tensors: Mapping[str, np.ndarray], step: int) -> str:
    """Returns 64 hexadecimal digits: the SHA-256 of a description of the tensors and their bytes, sorted by name.

    The description is JSON, {"step": step, "tensors": [[name, type, shape], ...]} without spaces. The bytes of each
    tensor are little endian and in row-major order.
    """
    digest = _described({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, step)
    for name in sorted(tensors):
        digest.update(safetensors_file.bytes_of(tensors[name]))
    return digest.hexdigest()


def _described(types: Mapping[str, tuple[np.dtype, tuple[int, ...]]], step: int) -> "hashlib._Hash":
    """Returns the hash of the description of tensors, to which their bytes are added."""
    described = [[name, types[name][0].name, types[name][1]] for name in sorted(types)]
    return hashlib.sha256(json.dumps({"step": step, "tensors": described}, separators=(",", ":")).encode())


def _step(path: Path, metadata: Mapping[str, str]) -> int:
    text = metadata.get("step", "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise UserError(f"{path} is damaged: its step is {excerpt(repr(text))}, not a number; export it again")
    return int(text)


def _get(path: Path, name: str) -> np.ndarray:
    with _opened(path) as file:  # closing frees the pages
        return file.get_tensor(name)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safetensors.safe_open]:
    try:
        with io.open_regular(path), safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the header may name types and shapes that NumPy does not have
        raise UserError(f"{path} cannot be read ({excerpt(str(error))}): export it again") from error
