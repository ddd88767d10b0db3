"""Images with transparency as images without."""

from typing import TypeVar

import numpy as np
from jax import Array

AnyArray = TypeVar("AnyArray", np.ndarray, Array)


def composite(images: AnyArray, black: float, white: float, background: AnyArray | float | None = None) -> AnyArray:
    """Returns images on a background of one colour.

    Args:
      images: [..., H, W, 4] RGBA, colours not premultiplied, of NumPy or JAX.
      black, white: lowest and highest value of a channel.
      background: colour [3], or grey level; None: white.

    Returns:
      [..., H, W, 3], floating point.
    """
    alpha = (images[..., 3:] - black) / (white - black)
    return images[..., :3] * alpha + (white if background is None else background) * (1 - alpha)
