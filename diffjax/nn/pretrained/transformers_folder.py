"""Reads folders of networks in the format of Hugging Face's library transformers: config.json and a file of weights."""

from pathlib import Path
from typing import Any

import numpy as np

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.published.tensors import Weights


def weights_path(folder: Path) -> Path:
    """Returns the path of a folder's weights: model.safetensors, or pytorch_model.bin if only that exists."""
    name = "model.safetensors"
    older = not (folder / name).exists() and (folder / "pytorch_model.bin").exists()
    return folder / ("pytorch_model.bin" if older else name)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the fields of a JSON file. Raises UserError if it cannot be read or has no fields."""
    try:
        content = io.parse_json(io.read_bytes(path, io.MAX_JSON))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {excerpt(str(error))}; download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: has no fields; use a folder of a published network")
    return content


def shown(value: Any) -> str:
    """Returns a value of a JSON file for an error message: short, and on one line."""
    try:
        return excerpt(io.to_json(value), 80)
    except RecursionError:
        return "nested too deeply"


def check_count(folder: Path, name: str, value: Any) -> int:
    """Returns the value of a field of config.json. Raises UserError unless it is a positive integer."""
    if type(value) is not int or not 0 < value < 2**31:
        raise UserError(f"{folder}/config.json: {name}={shown(value)}: must be a positive integer")
    return value


def is_number(value: Any, low: float) -> bool:
    """Returns whether a value of a JSON file is a finite number above `low`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < 1e30


def norm(weights: Weights, name: str, width: int) -> dict[str, np.ndarray]:
    """Pops the parameters of a layer norm."""
    return {"scale": pop(weights, f"{name}.weight", width), "bias": pop(weights, f"{name}.bias", width)}


def dense(weights: Weights, name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    """Pops the parameters of a linear layer."""
    kernel = pop(weights, f"{name}.weight", outputs, inputs).T
    return {"kernel": kernel, "bias": pop(weights, f"{name}.bias", outputs)}


def pop(weights: Weights, name: str, *shape: int) -> np.ndarray:
    """Pops a tensor as float32."""
    return weights.pop(name, *shape).astype(np.float32)
