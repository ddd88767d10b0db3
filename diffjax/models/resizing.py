"""Pictures at another size."""

import jax
from jaxtyping import Array, Float

from diffjax.typing import Images


def larger(images: Float[Array, "B h w C"], factor: int) -> Images:
    """Bilinear, at `factor` times the size: how ADM's and GLIDE's upsamplers are told the small picture (code).

    Pixels have their centres at halves, and edges are repeated.
    """
    batch, height, width, channels = images.shape
    return jax.image.resize(images, (batch, factor * height, factor * width, channels), "linear")
