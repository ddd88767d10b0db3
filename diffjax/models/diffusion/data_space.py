"""Spaces in which images are diffused: pixels, latents of a codec, CLIP embeddings."""

import abc
import dataclasses

from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.errors import UserError
from diffjax.models.base import Autoencoder, ContrastiveModel, abstract_value
from diffjax.models.images import downsample
from diffjax.nn.layers import unit_norm
from diffjax.typing import Embeddings, Images, ImageSpec, Latents, Variables


@dataclasses.dataclass(frozen=True)
class DataSpace(abc.ABC):
    """A space of data.

    Attributes:
      shape: shape of one example.
    """

    shape: tuple[int, ...]

    def init(self) -> Variables:
        """Returns variables of the space, by collection."""
        return {}

    @abc.abstractmethod
    def encode(self, variables: Variables, images: Images) -> Array:
        """Returns the data [B, *shape] of images [B, H, W, C] in [-1, 1]; `variables` are the diffusion model's."""

    @abc.abstractmethod
    def decode(self, variables: Variables, x: Array) -> Array:
        """Returns images in [-1, 1], or embeddings, of data [B, *shape]."""


@dataclasses.dataclass(frozen=True)
class PixelSpace(DataSpace):
    """Pixels in [-1, 1], averaged down by a factor."""

    factor: int = 1

    def encode(self, variables: Variables, images: Images) -> Images:
        return downsample(images, self.factor)

    def decode(self, variables: Variables, x: Images) -> Images:
        return x


@dataclasses.dataclass(frozen=True)
class LatentSpace(DataSpace):
    """Latents of unit variance of a trained autoencoder, whose variables are variables["frozen"]["codec"].

    Reference: Rombach et al. 2022, section 3.1 and appendix G.
    """

    autoencoder: Autoencoder

    def encode(self, variables: Variables, images: Images) -> Latents:
        return self.autoencoder.codec(variables["frozen"]["codec"]).encode(images)

    def decode(self, variables: Variables, x: Latents) -> Images:
        return jnp.clip(self.autoencoder.codec(variables["frozen"]["codec"]).decode(x), -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class EmbeddingSpace(DataSpace):
    """CLIP embeddings of images, of unit norm times `scale`; the CLIP's variables are variables["frozen"]["clip"].

    Reference: Ramesh et al. 2022 (unCLIP), section 2.2.
    """

    contrastive: ContrastiveModel
    scale: float

    def encode(self, variables: Variables, images: Images) -> Embeddings:
        clip = self.contrastive.clip(variables["frozen"]["clip"])
        return self.scale * lax.stop_gradient(clip.embed_images(images))

    def decode(self, variables: Variables, x: Embeddings) -> Embeddings:
        return unit_norm(x, 1e-8)


@dataclasses.dataclass(frozen=True)
class StandardizedSpace(EmbeddingSpace):
    """CLIP embeddings of images, of any norm: each value minus its mean, over its standard deviation, as in Karlo.

    Both are variables["embeddings"], of imported weights; training does not change them. `scale` is not used.
    """

    def init(self) -> Variables:
        return {"embeddings": {"mean": jnp.zeros(self.shape), "std": jnp.ones(self.shape)}}

    def encode(self, variables: Variables, images: Images) -> Embeddings:
        clip, statistics = self.contrastive.clip(variables["frozen"]["clip"]), variables["embeddings"]
        assert clip.project_images is not None
        embeddings = lax.stop_gradient(clip.project_images(images))
        return (embeddings - statistics["mean"][None]) / statistics["std"][None]

    def decode(self, variables: Variables, x: Embeddings) -> Embeddings:
        statistics = variables["embeddings"]
        return x * statistics["std"][None] + statistics["mean"][None]


def pixel_space(spec: ImageSpec, factor: int = 1) -> PixelSpace:
    """Returns the space of images averaged down by `factor`. Raises UserError if it does not divide the sides."""
    if factor < 1 or spec.size % factor:
        raise UserError(
            f"diffusion.downsample={factor}: must divide data.image_size={spec.size}; choose a factor that does"
        )
    side = spec.size // factor
    return PixelSpace((side, side, spec.channels), factor)


def latent_space(autoencoder: Autoencoder, variables: Variables) -> LatentSpace:
    """Returns the space of the latents of an autoencoder, from its variables or their shapes."""
    return LatentSpace(abstract_value(autoencoder.codec, variables).shape, autoencoder)


def downsample_mask(mask: Float[Array, "B H W 1"], side: int) -> Float[Array, "B h w 1"]:
    """Returns a mask of side x side: 1 where all pixels of a position are 1."""
    return (downsample(mask, mask.shape[1] // side) > 1.0 - 1e-4).astype(mask.dtype)
