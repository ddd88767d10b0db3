"""Encoder and decoder of VQ-VAE (van den Oord et al. 2017, section 4.1), stacked by VQ-VAE-2 (Razavi et al. 2019).

Widths are those of the authors' example in Sonnet: channels / 2 after the first halving, then `channels`. Inputs may be
feature maps: the top encoder of VQ-VAE-2, of factor 2, takes the output of the bottom encoder, of factor 4.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.autoencoders import check_sides
from diffjax.nn.layers import Conv, Dense, initializers
from diffjax.typing import PRNGKeys


class TransposedConv(nn.Module):
    """Doubles the sides by a 4x4 transposed convolution of stride 2."""

    features: int  # output channels
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        # fan-in: every output depends on 2x2 inputs
        kernel_init, bias_init = initializers(self.initializer, 4 * x.shape[-1], 1)
        kernel = self.param("kernel", kernel_init, (4, 4, x.shape[-1], self.features), jnp.float32).astype(self.dtype)
        bias = self.param("bias", bias_init, (self.features,), jnp.float32).astype(self.dtype)
        y = jax.lax.conv_transpose(
            x.astype(self.dtype), kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias[None, None, None, :]


class _Network(nn.Module):
    """Base class of the encoder and the decoder. It has no dropout: `dropout_keys` are ignored."""

    outputs: int  # output channels
    channels: int = 128  # base width, even
    factor: int = 4  # ratio of image side to latent side, a power of two from 1
    blocks: int = 2  # residual blocks
    residual_channels: int = 32  # hidden channels of a residual block
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    def _halvings(self):
        if self.channels % 2 and self.factor > 1:
            raise ValueError(f"channels={self.channels}: must be even, for an outermost layer of half as many; add one")
        if self.factor < 1 or self.factor & (self.factor - 1):
            raise ValueError(f"factor={self.factor}: must be a power of two, at least 1")
        return self.factor.bit_length() - 1

    def _layer(self, layer, *args, **options):
        return layer(*args, initializer=self.initializer, dtype=self.dtype, **options)

    def _residual_stack(self, h):
        for i in range(self.blocks):
            r = self._layer(Conv, self.residual_channels, name=f"block_{i}_conv_0")(nn.relu(h))
            h = h + self._layer(Dense, self.channels, name=f"block_{i}_conv_1")(nn.relu(r))
        return nn.relu(h)


class Encoder(_Network):
    """Strided convolutions, a 3x3 convolution, residual blocks and a 1x1 convolution to `outputs`."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], dropout_keys: PRNGKeys | None = None) -> Float[Array, "B h w O"]:
        """Computes latents.

        Args:
          x: images [B, H, W, C] in [-1, 1], or feature maps.
          dropout_keys: ignored.

        Returns:
          float32 [B, H / factor, W / factor, outputs].

        Raises:
          ValueError: `factor` is not a power of two or does not divide the sides.
        """
        halvings = self._halvings()
        check_sides(x, self.factor)
        h = x
        for i in range(halvings):
            width = self.channels if i else self.channels // 2
            h = nn.relu(self._layer(Conv, width, 2, kernel=4, name=f"down_{i}")(h))
        h = self._residual_stack(self._layer(Conv, self.channels, name="conv")(h))
        return Dense(self.outputs, self.initializer, name="conv_out")(h)


class Decoder(_Network):
    """A 3x3 convolution, residual blocks and transposed convolutions to `outputs` (factor 1: a 3x3 convolution)."""

    @nn.compact
    def __call__(self, z: Float[Array, "B h w D"], dropout_keys: PRNGKeys | None = None) -> Float[Array, "B H W O"]:
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
        h = self._residual_stack(self._layer(Conv, self.channels, name="conv")(z))
        for i in reversed(range(1, halvings)):
            width = self.channels if i > 1 else self.channels // 2
            h = nn.relu(self._layer(TransposedConv, width, name=f"up_{i}")(h))
        last = TransposedConv if halvings else Conv
        return last(self.outputs, initializer=self.initializer, name="conv_out")(h)
