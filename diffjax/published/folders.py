"""Folders of components of diffusers and transformers, such as unet/ and text_encoder/: their JSON and weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.published.lazy import LazyTensor
from diffjax.published.tensors import open_tensors

FILES = [  # in order of preference
    *(
        f"{stem}{suffix}"
        for suffix in (
            *(".safetensors", ".safetensors.index.json", ".fp16.safetensors", ".safetensors.index.fp16.json"),
            *(".bin", ".bin.index.json", ".fp16.bin"),
        )
        for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
    ),
    *("diffusion_flax_model.msgpack", "flax_model.msgpack", "flax_model.msgpack.index.json"),
]
_OLD_NAMES = {  # of attention in files of diffusers before 0.18
    r"(.*\.attentions\.\d+)\.query\.(weight|bias)": r"\1.to_q.\2",
    r"(.*\.attentions\.\d+)\.key\.(weight|bias)": r"\1.to_k.\2",
    r"(.*\.attentions\.\d+)\.value\.(weight|bias)": r"\1.to_v.\2",
    r"(.*\.attentions\.\d+)\.proj_attn\.(weight|bias)": r"\1.to_out.0.\2",
}


def read_json(path: Path) -> dict[str, Any]:
    """Returns the fields of a JSON file of another library. Raises UserError if it cannot be read or has no fields."""
    try:
        content = io.parse_json(io.read_bytes(path, io.MAX_JSON))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {excerpt(str(error))}; download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: has no fields; use the folder of a published model")
    return content


def refused(path: Path, name: str, value: Any, reason: str) -> UserError:
    """Returns the error for a field of a JSON file that is not supported."""
    return UserError(f"{path}: {excerpt(name)}={shown(value)}: {reason}")


def shown(value: Any) -> str:
    """Returns a value of a JSON file for an error message: short, and on one line."""
    try:
        return excerpt(io.to_json(value), 80)
    except (TypeError, ValueError, RecursionError):
        return "(nested)"


def find_weights(folder: Path) -> Path:
    """Returns the file of a component's weights, or their index. Raises UserError for a folder without them."""
    for name in FILES:
        if (folder / name).exists():
            return folder / name
    raise UserError(
        f"{folder} has no weights; it must have {FILES[0]}, or another file that diffusers or transformers writes"
    )


def open_component(folder: Path) -> dict[str, LazyTensor]:
    """Returns the tensors of a component's folder, under the names of today.

    Raises:
      UserError: the folder has no file of weights, or it cannot be read.
    """
    return rename(open_tensors(find_weights(folder)), _OLD_NAMES)


def rename(tensors: Mapping[str, LazyTensor], patterns: Mapping[str, str]) -> dict[str, LazyTensor]:
    """Returns tensors with the names that match a regular expression replaced."""

    def renamed(name: str) -> str:
        for pattern, replacement in patterns.items():
            if match := re.fullmatch(pattern, name):
                return match.expand(replacement)
        return name

    return {renamed(name): tensor for name, tensor in tensors.items()}
