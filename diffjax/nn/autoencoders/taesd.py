"""TAESD (Bohan 2023): a tiny encoder and decoder for the latents of Stable Diffusion, for previews.

Latents are in units in which those of Stable Diffusion have unit variance. The decoder bounds them to [-3, 3].

Reference: https://github.com/madebyollin/taesd.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.autoencoders import check_sides
from diffjax.nn.layers import Conv, upsample_nearest
from diffjax.typing import Images, Latents, PRNGKeys

_MAX_LATENT = 3.0


class Block(nn.Module):
    """Three 3x3 convolutions with ReLUs between them, added to the input, and a ReLU."""

    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Returns features of the shape of `x`."""
        h = x
        for i in range(3):
            h = Conv(x.shape[-1], initializer=self.initializer, dtype=self.dtype, name=f"conv_{i}")(h)
            h = nn.relu(h) if i < 2 else h
        return nn.relu(h + x)


class _Network(nn.Module):
    """Base class of the encoder and the decoder. It has no dropout: `dropout_keys` are ignored."""

    outputs: int  # output channels
    channels: int = 64  # channels of all layers
    blocks: int = 3  # blocks of each resolution but the finest, which has one
    factor: int = 8  # ratio of image side to latent side, a power of two from 1
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    def _halvings(self) -> int:
        if self.factor < 1 or self.factor & (self.factor - 1):
            raise ValueError(f"factor={self.factor}: must be a power of two, at least 1")
        return self.factor.bit_length() - 1

    def _conv(self, features: int, **options):
        padding = ((1, 1), (1, 1))
        return Conv(features, padding=padding, initializer=self.initializer, dtype=self.dtype, **options)

    def _blocks(self, h: Array, level: int) -> Array:
        """Applies the blocks of a level; 0 is the finest."""
        for i in range(self.blocks if level else 1):
            h = Block(self.initializer, self.dtype, name=f"level_{level}_block_{i}")(h)
        return h


class Encoder(_Network):
    """Maps images to latents."""

    @nn.compact
    def __call__(self, x: Images, dropout_keys: PRNGKeys | None = None) -> Latents:
        """Computes latents.

        Args:
          x: images [B, H, W, C] in [-1, 1].
          dropout_keys: ignored.

        Returns:
          float32 [B, H / factor, W / factor, outputs].

        Raises:
          ValueError: `factor` is not a power of two, or does not divide the sides.
        """
        halvings = self._halvings()
        check_sides(x, self.factor)
        h = self._blocks(self._conv(self.channels, name="conv_in")((x + 1) / 2), 0)
        for level in range(1, halvings + 1):
            h = self._blocks(self._conv(self.channels, stride=2, bias=False, name=f"down_{level}")(h), level)
        return self._conv(self.outputs, name="conv_out")(h).astype(jnp.float32)


class Decoder(_Network):
    """Maps latents to images."""

    @nn.compact
    def __call__(self, z: Latents, dropout_keys: PRNGKeys | None = None) -> Images:
        """Computes images.

        Args:
          z: latents [B, h, w, D].
          dropout_keys: ignored.

        Returns:
          float32 [B, h * factor, w * factor, outputs].

        Raises:
          ValueError: `factor` is not a power of two.
        """
        halvings = self._halvings()
        h = nn.relu(self._conv(self.channels, name="conv_in")(_MAX_LATENT * jnp.tanh(z / _MAX_LATENT)))
        for level in range(halvings, 0, -1):
            h = upsample_nearest(self._blocks(h, level))
            h = self._conv(self.channels, bias=False, name=f"up_{level}")(h)
        return 2 * self._conv(self.outputs, name="conv_out")(self._blocks(h, 0)).astype(jnp.float32) - 1
