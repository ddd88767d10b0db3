"""DALL-E's sparse attention (Ramesh et al. 2021, appendix B.1 and figure 11), as masks over one sequence.

The sequence is a prefix (the caption) and then a grid of tokens row by row. Every token attends to itself and to all of
the prefix before it; a mask says to which tokens of the grid a token of the grid does.
"""

import numpy as np
from jaxtyping import Bool

from diffjax.nn.layers import choose

NAMES = ("full", "row", "column", "convolution")


def sparse(
    name: str, *, prefix: int, height: int, width: int, kernel: int = 11
) -> Bool[np.ndarray, "prefix+height*width prefix+height*width"]:
    """True where the token of a row may attend to that of a column.

    Args:
      name: "full": all before; "row": the `width` before, so that the farthest is the one above; "column": those above;
        "convolution": those of a `kernel` x `kernel` window around the token that come before it. A window, as a row,
        goes on at the other side of the grid: it is of offsets in the sequence.
      prefix: tokens before the grid.

    Raises:
      ValueError: an unknown name, or a kernel that is not odd.
    """
    choose("mask", name, NAMES)
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"a kernel of {kernel}: an odd number is needed")
    place = np.arange(height * width)
    back = place[:, None] - place[None, :]  # how far each token is before another
    half = min(kernel // 2, height * width)  # a wider window sees no more
    window = [row * width + column for row in range(half + 1) for column in range(-half, half + 1)]
    seen = {
        "full": back >= 0,
        "row": (back >= 0) & (back <= width),
        "column": (back >= 0) & (back % width == 0),
        "convolution": (back >= 0) & np.isin(back, window),
    }
    mask = np.tri(prefix + height * width, dtype=bool)
    mask[prefix:, prefix:] = seen[name]
    return mask
