"""Paths of arrays in nested dictionaries, and patterns with which config fields select them.

A path is the keys of an array joined by slashes, such as "model/down_0_block_0/conv_0/kernel". A pattern is one or more
consecutive names of a path, with the wildcards of shells: "label", "down_*", "middle_attention/qkv", "*/bias".
"""

import difflib
import fnmatch
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffjax.errors import UserError, validate_names


def path_of(keys: Any) -> str:
    """Returns the path of a leaf of nested dictionaries from its keys in `jax.tree_util`."""
    return "/".join(str(entry.key) for entry in keys)


def name_of(keys: Sequence[Any]) -> str | None:
    """Returns the last name in the path of a leaf from its keys in `jax.tree_util`, None in a tree of one leaf."""
    return getattr(keys[-1], "key", None) if keys else None


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves of nested dictionaries by path."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dictionaries of leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *sections, name = path.split("/")
        section = tree
        for key in sections:
            section = section.setdefault(key, {})
        section[name] = leaf
    return tree


def tree_hash(tree: Any) -> str:
    """Returns the SHA-256 of the names, types, shapes and values of a tree of arrays, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Returns whether at least one pattern matches a path."""
    return any(fnmatch.fnmatchcase(f"/{path}/", f"*/{pattern.strip('/')}/*") for pattern in patterns)


def check_patterns(field: str, patterns: Sequence[str], paths: Iterable[str]) -> None:
    """Checks that each pattern matches at least one path.

    Args:
      field: config field of the patterns, for the message.

    Raises:
      UserError: a pattern is not text, or matches no path; the message has the nearest names.
    """
    validate_names(field, patterns)
    paths = list(paths)
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in paths):
            raise UserError(f"{field}={pattern}: matches no parameter; {_proposal(pattern, paths)}")


def _proposal(pattern: str, paths: Sequence[str]) -> str:
    """Returns the names whose beginnings are the most similar to a pattern, or the names at the top."""
    start = pattern.replace("*", "")

    def similarity(name: str) -> float:
        return difflib.SequenceMatcher(None, start, name[: len(start)]).ratio()

    names = {part for path in paths for part in (path, *path.split("/"))}
    similar = sorted(filter(lambda name: similarity(name) > 0.6, names), key=lambda name: (-similarity(name), name))
    if similar:
        return f"did you mean {' or '.join(similar[:3])}?"
    return f"choose from {', '.join(sorted({'/'.join(path.split('/')[:2]) for path in paths}))}"
