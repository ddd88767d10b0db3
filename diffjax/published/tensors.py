"""Reads the weights of a published network from its file, and verifies that they are exactly that network's.

`open_tensors` opens a PyTorch checkpoint (torch_file.py), a safetensors file (safetensors_file.py), a Flax checkpoint
(flax_file.py), the shards of one of them, or an ONNX file (onnx_file.py). The loader of a network pops each tensor of
`Weights` by its name and expected shape, and finally asserts that none is left.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from jax import numpy as jnp

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.published.flax_file import open_flax_file, torch_name
from diffjax.published.lazy import LazyTensor
from diffjax.published.onnx_file import open_onnx_file
from diffjax.published.safetensors_file import open_safetensors_file
from diffjax.published.torch_file import open_torch_file

_INDEX = re.compile(r".*\.index(\.\w+)?\.json")  # lists the shards of a large checkpoint, also of a variant (.fp16)


class Weights:
    """Tensors of a checkpoint file, each of which is popped once.

    Attributes:
      network: name of the expected network, for error messages.
    """

    def __init__(self, path: str | Path, network: str, *, source: str = ""):
        """Opens the file, and verifies a checksum at the end of its name, as in vgg16-397923af.pth.

        Args:
          path: file, see `open_tensors`.
          network: name of the expected network, for error messages.
          source: where to get the file, appended to error messages.

        Raises:
          UserError: the file cannot be read or has another checksum.
        """
        self.network, self._path, self._source = network, path, f"; {source}" if source else ""
        try:
            self._left = open_tensors(path)
            _verify_name(Path(path))
        except UserError as error:
            raise UserError(f"{error}{self._source}") from error

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a tensor that was not popped, or None if it is missing."""
        return self._left[name].shape if name in self._left else None

    def pop(self, name: str, *shape: int) -> np.ndarray:
        """Removes a tensor and returns it as float64.

        Args:
          name: name of the tensor in the file.
          shape: expected shape.

        Raises:
          UserError: the tensor is missing, has another shape, or is not floating point and finite.
        """
        if self.shape(name) != shape:
            fault = f"of shape {self.shape(name)}, not {shape}" if name in self._left else "missing"
            raise UserError(f"{self._path} is not {self.network}: {name} is {fault}{self._source}")
        lazy = self._left.pop(name)
        if not jnp.issubdtype(lazy.dtype, jnp.floating):
            raise UserError(f"{self._path} is not {self.network}: {name} is of type {lazy.dtype}{self._source}")
        tensor = lazy.read().astype(np.float64)
        if not np.isfinite(tensor).all():
            raise UserError(f"{self._path} is damaged: {name} has values that are not finite{self._source}")
        return tensor

    def conv(self, name: str, norm: str, *shape: int, epsilon: float) -> dict[str, np.ndarray]:
        """Pops a convolution and its batch norm, and folds both into one convolution.

        Args:
          name: name of the convolution in the file.
          norm: name of the batch norm in the file.
          shape: shape of the convolution kernel in the file, [O, I, h, w].
          epsilon: epsilon of the batch norm.

        Returns:
          {"kernel": [h, w, I, O], "bias": [O]}, float32.
        """
        width = shape[0]
        gain = self.pop(f"{norm}.weight", width) / np.sqrt(self.pop(f"{norm}.running_var", width) + epsilon)
        kernel = self.pop(f"{name}.weight", *shape).transpose(2, 3, 1, 0) * gain
        bias = self.pop(f"{norm}.bias", width) - self.pop(f"{norm}.running_mean", width) * gain
        return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

    def assert_empty(self, *, ignored: Collection[str] = ()) -> None:
        """Raises UserError if a tensor is left, except those whose names start or end with one of the `ignored`."""
        unknown = sorted(
            name for name in self._left if not name.startswith(tuple(ignored)) and not name.endswith(tuple(ignored))
        )
        if unknown:
            raise UserError(f"{self._path} is not {self.network}, which has no {unknown[0]}{self._source}")


def open_tensors(path: str | Path) -> dict[str, LazyTensor]:
    """Returns the tensors of a checkpoint by name.

    Args:
      path: safetensors file, ONNX file or Flax checkpoint (.msgpack) by its suffix; the index of a checkpoint in shards
        (.index.json); else a PyTorch checkpoint.

    Raises:
      UserError: a file cannot be opened, is damaged or has a name that is not text, or an index does not match its
        shards.
    """
    path = Path(path)
    if _INDEX.fullmatch(path.name):
        return _open_shards(path)
    openers = {".safetensors": open_safetensors_file, ".onnx": open_onnx_file, ".msgpack": open_flax_file}
    return openers.get(path.suffix, open_torch_file)(path)


def open_parts(files: Mapping[str, str | Path]) -> dict[str, LazyTensor]:
    """Returns the tensors of a network in several files, such as encoder and decoder, by "PART.NAME".

    Args:
      files: file of each part, see `open_tensors`.

    Raises:
      UserError: see `open_tensors`.
    """
    return {f"{part}.{name}": tensor for part, path in files.items() for name, tensor in open_tensors(path).items()}


def _open_shards(index: Path) -> dict[str, LazyTensor]:
    try:
        content = io.read_json(index, "download it again")
    except OSError as error:
        raise UserError(f"cannot read {index}: {error.strerror or error}") from error
    shard_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shard_of, dict) or not all(_is_file_name(name) for name in shard_of.values()):
        raise UserError(f"{index}: weight_map must have the file of each tensor; download it again")
    if ".msgpack.index" in index.name:  # with Flax's names, joined by "/"
        shard_of = {torch_name(name.split("/")): shard for name, shard in shard_of.items()}
    shards = {name: open_tensors(index.with_name(name)) for name in sorted(set(shard_of.values()))}
    for name, shard in shard_of.items():
        if name not in shards[shard]:
            raise UserError(f"{index.with_name(shard)} has no {excerpt(name)}, as {index} states; download both again")
    return {name: shards[shard][name] for name, shard in shard_of.items()}


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name == Path(name).name and not _INDEX.fullmatch(name)


def _verify_name(path: Path) -> None:
    """Raises UserError if a file's name ends in the beginning of another SHA-256, as in PyTorch's published files."""
    published = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", path.name)
    if published and not io.file_hash(path).startswith(published[1]):
        raise UserError(f"{path} is damaged: its SHA-256 does not start with {published[1]}, as its name states")
