"""Reads the weights of a published network from its file, and verifies that they are exactly that network's.

`Weights` opens a PyTorch checkpoint (torch_checkpoint.py) or a safetensors file. The loader of a network pops each
tensor by its name and expected shape, and finally asserts that none is left.
"""

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import safetensors.numpy
from jax import numpy as jnp

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.nn.pretrained import torch_checkpoint


class Weights:
    """Tensors of a checkpoint file, each of which is popped once.

    Attributes:
      network: name of the expected network, for error messages.
    """

    def __init__(self, path: str | Path, network: str, *, source: str = ""):
        """Reads the file, and verifies a checksum at the end of its name, as in vgg16-397923af.pth.

        Args:
          path: PyTorch checkpoint, or safetensors file by its suffix.
          network: name of the expected network, for error messages.
          source: where to get the file, appended to error messages.

        Raises:
          UserError: the file cannot be read or has another checksum.
        """
        self.network, self._path, self._source = network, path, f"; {source}" if source else ""
        try:
            self._left = read_safetensors(path) if Path(path).suffix == ".safetensors" else torch_checkpoint.read(path)
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
        tensor = self._left.pop(name)
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"{self._path} is not {self.network}: {name} is of type {tensor.dtype}{self._source}")
        tensor = tensor.astype(np.float64)
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


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file by name.

    Raises:
      UserError: the file cannot be opened, is not a safetensors file, or has a name that is not text.
    """
    try:
        with io.open_regular(path):  # errors of the library do not contain the reason
            tensors = safetensors.numpy.load_file(path)
        if unprintable := next((name for name in tensors if not name.isprintable()), None):
            raise ValueError(f"a tensor's name is not text: {unprintable!r}")
        return tensors
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the header may have types and shapes unknown to NumPy
        raise UserError(f"{path} is not a safetensors file that can be read: {excerpt(str(error))}") from error


def _verify_name(path: Path) -> None:
    """Raises UserError if a file's name ends in the beginning of another SHA-256, as in PyTorch's published files."""
    published = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", path.name)
    if published and not io.file_hash(path).startswith(published[1]):
        raise UserError(f"{path} is damaged: its SHA-256 does not start with {published[1]}, as its name states")
