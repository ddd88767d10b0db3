"""Linear measurements of images. A public function of this file is a measurement that a config can name.

Each returns the operator A, a linear function of one image [H, W, C]. A measurement is y = A x_0 + noise: see
inverse_problems.py. `array` is the data of an operator that is not defined by numbers alone.
"""

from collections.abc import Callable

import numpy as np
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float, Int

Operator = Callable[[Float[Array, "H W C"]], Float[Array, "..."]]

_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as Pillow has


def mask(*, array: Int[Array, " M"]) -> Operator:
    """Returns the values [M] that are known: inpainting.

    Args:
      array: their indices among the H W C values of an image.
    """
    return lambda x: x.reshape(-1)[array]


def blur(*, sigma: float = 1.0) -> Operator:
    """Blurs by a Gaussian, reflected at the borders; [H, W, C].

    Args:
      sigma: standard deviation in pixels, > 0; the filter ends at 4 of them.
    """

    def apply(x):
        rows, columns = (jnp.asarray(_blur_matrix(side, sigma), x.dtype) for side in x.shape[:2])
        return jnp.einsum("ih,jw,hwc->ijc", rows, columns, x)

    return apply


def downsample(*, factor: int = 2) -> Operator:
    """Averages squares of pixels; [H / factor, W / factor, C].

    Args:
      factor: side of a square in pixels, which divides the sides of the image.

    Raises:
      ValueError: `factor` does not divide the sides.
    """

    def apply(x):
        height, width, channels = x.shape
        if factor != int(factor) or factor < 1 or height % factor or width % factor:
            raise ValueError(f"factor={factor}: must be a whole number that divides the sides {height} and {width}")
        side = int(factor)
        return x.reshape(height // side, side, width // side, side, channels).mean((1, 3))

    return apply


def grey() -> Operator:
    """Returns the luma of a colour image; [H, W, 1].

    Raises:
      ValueError: the image does not have 3 channels.
    """

    def apply(x):
        if x.shape[-1] != 3:
            raise ValueError(f"requires images of 3 channels, not {x.shape[-1]}")
        return x @ jnp.asarray(_LUMA, x.dtype)[:, None]

    return apply


def matrix(*, array: Float[Array, "M N"]) -> Operator:
    """Multiplies the values of an image, flattened to [N] with N = H W C, by a matrix; [M].

    Raises:
      ValueError: the matrix has another number of columns.
    """

    def apply(x):
        if array.ndim != 2 or array.shape[1] != x.size:
            raise ValueError(f"the matrix has the shape {list(array.shape)}; it must have {x.size} columns, H W C")
        return array @ x.reshape(-1)

    return apply


def _blur_matrix(side: int, sigma: float) -> np.ndarray:
    """Returns the matrix [side, side] of a Gaussian filter with reflection at the borders (d c b a | a b c d)."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    places = (np.arange(side)[:, None] + offsets) % (2 * side)
    places = np.where(places < side, places, 2 * side - 1 - places)
    result = np.zeros((side, side))
    np.add.at(result, (np.arange(side)[:, None], places), np.broadcast_to(weights, places.shape))
    return result
