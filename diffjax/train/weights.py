"""A run as its weights alone, in one safetensors file: smaller, and read by other libraries too."""

import contextlib
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

from diffjax import io
from diffjax.errors import UserError
from diffjax.typing import Variables


def save(path: Path, variables: Variables, step: int) -> None:
    """Writes variables, each by its path such as "params/model/Dense_0/kernel", and the step they are of."""
    tensors = {name_of(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    with io.atomic_path(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata={"step": str(step), "format": "np"})


def load(path: Path, template: Variables) -> Variables:
    """The variables of a file, as `template` of jax.ShapeDtypeStruct has them.

    Raises UserError where it is no such file, or one of another model.
    """
    with _opened(path) as file:
        names, expected = set(file.keys()), jax.tree_util.tree_leaves_with_path(template)
        if differing := sorted(names ^ {name_of(keys) for keys, _ in expected}):
            raise UserError(f"{path} does not fit its config's model: {differing[0]} is in one of them only")
        tree = jax.tree_util.tree_map_with_path(lambda keys, leaf: file.get_tensor(name_of(keys)), template)
    for (keys, leaf), tensor in zip(expected, jax.tree.leaves(tree), strict=True):
        if leaf.shape != tensor.shape:
            raise UserError(
                f"{path} does not fit its config's model: {name_of(keys)} is {tensor.shape} and not {leaf.shape}"
            )
    return tree


def step_of(path: Path) -> int:
    """The step that a file's variables are of. Raises UserError where it is no such file."""
    with _opened(path) as file:
        return int((file.metadata() or {}).get("step", 0))


@contextlib.contextmanager
def _opened(path: Path):
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}): export it again") from error


def name_of(keys) -> str:
    """Of a leaf of nested dictionaries, by its path."""
    return "/".join(str(entry.key) for entry in keys)
