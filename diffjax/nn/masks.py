"""Sparse attention masks of DALL-E (Ramesh et al. 2021, appendix B.1 and figure 11).

The sequence is a prefix (the caption) followed by a grid of image tokens in raster order. Every token attends to itself
and to all previous tokens of the prefix. The mask determines which previous grid tokens a grid token attends to.
"""

import numpy as np
from jaxtyping import Bool

from diffjax.nn.layers import check_choice

NAMES = ("full", "row", "column", "convolution")


def sparse(
    name: str, *, prefix: int, height: int, width: int, kernel: int = 11
) -> Bool[np.ndarray, "prefix+height*width prefix+height*width"]:
    """Returns a mask that is True where a token (row) may attend to a token (column).

    Args:
      name: "full": all previous tokens; "row": the previous `width` tokens, up to the one above; "column": the tokens
        above; "convolution": the previous tokens of a `kernel` x `kernel` window. Windows and rows are offsets in the
        sequence, so they wrap around at the edges of the grid.
      prefix: number of tokens before the grid.
      height: rows of the grid.
      width: columns of the grid.
      kernel: side of the window, odd.

    Raises:
      ValueError: an unknown name, or an even kernel.

    Reference: DALL-E (Ramesh et al. 2021), figure 11.
    """
    check_choice("mask", name, NAMES)
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}: must be odd and positive")
    place = np.arange(height * width)
    back = place[:, None] - place[None, :]  # distance in the sequence from a token (row) back to another (column)
    half = min(kernel // 2, height * width)  # a wider window includes no further tokens
    window = [row * width + column for row in range(half + 1) for column in range(-half, half + 1)]
    visible = {
        "full": back >= 0,
        "row": (back >= 0) & (back <= width),
        "column": (back >= 0) & (back % width == 0),
        "convolution": (back >= 0) & np.isin(back, window),
    }
    mask = np.tri(prefix + height * width, dtype=bool)
    mask[prefix:, prefix:] = visible[name]
    return mask
