"""The weights of a published network, taken one by one from its PyTorch checkpoint or safetensors file."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import safetensors.numpy

from diffjax.errors import UserError
from diffjax.nn import torch_file


class Weights:
    """The tensors of a file, each of which is taken once.

    Attributes:
      network: what the file should be, which errors say; it may be set once the tensors have told.
    """

    def __init__(self, path: str | Path, network: str, *, source: str = ""):
        """Reads the file. Raises UserError where it cannot; it says the `source`, where the file can be got."""
        self.network, self._path, self._source = network, path, f"; {source}" if source else ""
        try:
            self._left = _read_safetensors(path) if Path(path).suffix == ".safetensors" else torch_file.read(path)
        except UserError as error:
            raise UserError(f"{error}{self._source}") from error

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor that was not taken yet; None where there is none."""
        return self._left[name].shape if name in self._left else None

    def take(self, name: str, *shape: int) -> np.ndarray:
        """A tensor, float64. Raises UserError unless it is there and of that shape."""
        if self.shape(name) != shape:
            found = f"of shape {self.shape(name)}, not {shape}" if name in self._left else "missing"
            raise UserError(f"{self._path} is not {self.network}: {name} is {found}{self._source}")
        return self._left.pop(name).astype(np.float64)

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


def _read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name. Raises UserError where there is no such file or it is none."""
    try:
        with open(path, "rb"):  # the library's own errors do not tell why a file cannot be opened
            return safetensors.numpy.load_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the header may name types that NumPy has not
        raise UserError(f"{path} is not a safetensors file that can be read: {error}") from error
