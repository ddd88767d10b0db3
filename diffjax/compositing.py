"""Images with transparency as images without."""

from typing import TypeVar

import numpy as np
from jax import Array

AnyArray = TypeVar("AnyArray", np.ndarray, Array)


def composite_on_white(images: AnyArray, black: float, white: float) -> AnyArray:
    """Returns images on a white background.

    Args:
      images: [..., H, W, 4] RGBA, colours not premultiplied, of NumPy or JAX.
      black, white: lowest and highest value of a channel.

    Returns:
      [..., H, W, 3], floating point.
    """
    alpha = (images[..., 3:] - black) / (white - black)
    return images[..., :3] * alpha + white * (1 - alpha)
