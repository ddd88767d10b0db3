"""The weights of a published network, taken one by one from its PyTorch checkpoint or safetensors file."""

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
    """The tensors of a file, each of which is taken once.

    Attributes:
      network: what the file should be, which errors say; it may be set once the tensors have told.
    """

    def __init__(self, path: str | Path, network: str, *, source: str = ""):
        """Reads the file, and verifies the checksum that its name may end in, as in vgg16-397923af.pth.

        Raises:
          UserError: the file cannot be read or has another checksum; the message names the `source`, where to get it.
        """
        self.network, self._path, self._source = network, path, f"; {source}" if source else ""
        try:
            self._left = read_safetensors(path) if Path(path).suffix == ".safetensors" else torch_checkpoint.read(path)
            _verify_name(Path(path))
        except UserError as error:
            raise UserError(f"{error}{self._source}") from error

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor that was not taken yet; None where there is none."""
        return self._left[name].shape if name in self._left else None

    def take(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor, float64. Raises UserError unless it is there, of that shape, floating point and finite."""
        if self.shape(name) != shape:
            found = f"of shape {self.shape(name)}, not {shape}" if name in self._left else "missing"
            raise UserError(f"{self._path} is not {self.network}: {name} is {found}{self._source}")
        tensor = self._left.pop(name)
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"{self._path} is not {self.network}: {name} is of type {tensor.dtype}{self._source}")
        tensor = tensor.astype(np.float64)
        if not np.isfinite(tensor).all():
            raise UserError(f"{self._path} is damaged: {name} has values that are not finite{self._source}")
        return tensor

    def conv(self, name: str, norm: str, *shape: int, epsilon: float) -> dict[str, np.ndarray]:
        """A convolution [O, I, h, w] and the batch norm after it, as one convolution [h, w, I, O], float32."""
        width = shape[0]
        gain = self.take(f"{norm}.weight", width) / np.sqrt(self.take(f"{norm}.running_var", width) + epsilon)
        kernel = self.take(f"{name}.weight", *shape).transpose(2, 3, 1, 0) * gain
        bias = self.take(f"{norm}.bias", width) - self.take(f"{norm}.running_mean", width) * gain
        return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

    def done(self, *, but: Collection[str] = ()) -> None:
        """Raises UserError where tensors are left whose names neither start nor end with one `but`."""
        unknown = sorted(
            name for name in self._left if not name.startswith(tuple(but)) and not name.endswith(tuple(but))
        )
        if unknown:
            raise UserError(f"{self._path} is not {self.network}, which has no {unknown[0]}{self._source}")


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file by name.

    Raises:
      UserError: the file cannot be opened, is not a safetensors file, or has a name that is not text.
    """
    try:
        with io.open_regular(path):  # the library's own errors do not tell why a file cannot be opened
            tensors = safetensors.numpy.load_file(path)
        if unprintable := next((name for name in tensors if not name.isprintable()), None):
            raise ValueError(f"a tensor's name is not text: {unprintable!r}")
        return tensors
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the header may name types and shapes that NumPy does not have
        raise UserError(f"{path} is not a safetensors file that can be read: {excerpt(str(error))}") from error


def _verify_name(path: Path) -> None:
    """Raises UserError for a file whose name ends in the start of another SHA-256, as PyTorch's published files do."""
    published = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", path.name)
    if published and not io.file_hash(path).startswith(published[1]):
        raise UserError(f"{path} is damaged: its SHA-256 does not start with {published[1]}, as its name states")
