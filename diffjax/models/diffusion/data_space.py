"""What is diffused of a picture: its pixels, a codec's latents, or its CLIP embedding."""

from collections.abc import Callable
from typing import NamedTuple

from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.errors import UserError
from diffjax.models.abstract import described
from diffjax.models.embeddings import unit_length
from diffjax.models.pixels import smaller
from diffjax.typing import Images, ImageSpec, System, Variables


class Space(NamedTuple):
    """A space of data.

    Attributes:
      shape: of one example.
      encode: (variables, pictures [B, H, W, C] in [-1, 1]) -> [B, *shape].
      decode: (variables, [B, *shape]) -> pictures in [-1, 1], or embeddings of unit length.
      pixels: whether the values are pixels, in [-1, 1], and their likelihood is that of the picture.
    """

    shape: tuple[int, ...]
    encode: Callable[[Variables, Images], Array]
    decode: Callable[[Variables, Array], Array]
    pixels: bool = False


def pixels(spec: ImageSpec, downsample: int = 1) -> Space:
    """Pictures averaged down by a factor. Raises UserError for one that does not divide the sides."""
    if downsample < 1 or spec.size % downsample:
        raise UserError(
            f"diffusion.downsample={downsample} does not divide data.image_size={spec.size}: choose a factor that does"
        )
    side = spec.size // downsample
    return Space(
        (side, side, spec.channels), lambda variables, images: smaller(images, downsample), lambda variables, x: x, True
    )


def latents(codec: System, frozen: Variables) -> Space:
    """Of a trained autoencoder, of unit variance (Rombach et al. 2022, section 3.1, appendix G).

    `frozen` are its variables or their shapes; the bound ones are variables["frozen"]["codec"].
    """

    def bound(variables):
        return codec.codec(variables["frozen"]["codec"])

    return Space(
        described(codec.codec, frozen).shape,
        lambda variables, images: bound(variables).encode(images),
        lambda variables, z: jnp.clip(bound(variables).decode(z), -1.0, 1.0),
    )


def embeddings(clip: System, dimensions: int, scale: float) -> Space:
    """CLIP's of pictures, times `scale` (unCLIP: Ramesh et al. 2022, section 2.2)."""

    def encode(variables, images):
        return scale * lax.stop_gradient(clip.clip(variables["frozen"]["clip"]).embed_images(images))

    return Space((dimensions,), encode, lambda variables, x: unit_length(x))


def kept_in(kept: Float[Array, "B H W 1"], side: int) -> Float[Array, "B h w 1"]:
    """Of a mask of pictures, 1 where all that a position of `side` x `side` stands for is kept."""
    factor = kept.shape[1] // side
    return (smaller(kept, factor) > 1.0 - 1e-4).astype(kept.dtype)
