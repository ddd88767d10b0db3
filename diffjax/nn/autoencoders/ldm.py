"""Autoencoder networks of latent diffusion (Rombach et al. 2022, appendix G) and VQGAN (Esser et al. 2021, table 7)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.attention import AttentionBlock
from diffjax.nn.autoencoders import check_sides
from diffjax.nn.layers import Conv, Downsample, GroupNorm, Upsample, check_dropout
from diffjax.nn.resblock import ResBlock
from diffjax.typing import Images, Latents, PRNGKeys


class _Network(nn.Module):
    """Base class of the encoder and the decoder."""

    outputs: int  # output channels; encoder of a Gaussian: twice the latent channels
    channels: int = 128  # base width
    multipliers: Sequence[int] = (1, 2, 4)  # width of each level in units of `channels`, the finest first
    blocks: int = 2  # residual blocks per level of the encoder; the decoder has one more
    attention_resolutions: Sequence[int] = ()  # heights of the feature maps with attention
    middle_attention: bool = True
    dropout: float = 0.0  # rate
    norm_groups: int = 32  # groups per group norm
    norm_min_channels: int = 0  # minimum channels per group; 0: exactly `norm_groups` groups (layers.num_groups)
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    @property
    def factor(self) -> int:
        """Ratio of image side to latent side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def _normed(self) -> dict[str, int]:
        return {"groups": self.norm_groups, "min_channels": self.norm_min_channels}

    def _layer(self, layer, *args, **options):
        return layer(*args, initializer=self.initializer, dtype=self.dtype, **options)

    def _block(self, h, level, name, dropout_keys):
        width = self.channels * self.multipliers[level]
        block = self._layer(ResBlock, width, dropout=self.dropout, **self._normed, name=name)
        return block(h, dropout_keys=dropout_keys)

    def _attend(self, h, name):
        return self._layer(AttentionBlock, **self._normed, name=name)(h)

    def _level(self, h, level, way, blocks, dropout_keys):
        for i in range(blocks):
            h = self._block(h, level, f"{way}_{level}_block_{i}", dropout_keys)
            if h.shape[1] in self.attention_resolutions:
                h = self._attend(h, f"{way}_{level}_attention_{i}")
        return h

    def _middle(self, h, dropout_keys):
        h = self._block(h, -1, "middle_block_0", dropout_keys)
        if self.middle_attention:
            h = self._attend(h, "middle_attention")
        return self._block(h, -1, "middle_block_1", dropout_keys)

    def _head(self, h):
        norm = GroupNorm(self.norm_groups, min_channels=self.norm_min_channels, name="norm_out")
        h = nn.silu(norm(h))
        return Conv(self.outputs, initializer=self.initializer, name="conv_out")(h)

    def _check(self, height: int) -> None:
        """Raises ValueError for settings that would fail later or be ignored; `height` is that of the image."""
        check_dropout(self.dropout)
        heights = [height >> level for level in range(len(self.multipliers))]
        if set(self.attention_resolutions) - set(heights):
            raise ValueError(f"attention_resolutions={tuple(self.attention_resolutions)}: must be among {heights}")


class Encoder(_Network):
    """Maps images to latents, or to their means and log variances, concatenated over channels."""

    @nn.compact
    def __call__(self, x: Images, dropout_keys: PRNGKeys | None = None) -> Latents:
        """Computes latents.

        Args:
          x: images [B, H, W, C] in [-1, 1].
          dropout_keys: one key per example; None: no dropout.

        Returns:
          float32 [B, H / factor, W / factor, outputs].

        Raises:
          ValueError: `factor` does not divide the sides, no feature map has an attention resolution, or a dropout rate
            outside [0, 1).
        """
        check_sides(x, self.factor)
        self._check(x.shape[1])
        h = self._layer(Conv, self.channels, name="conv_in")(x)
        for level in range(len(self.multipliers)):
            h = self._level(h, level, "down", self.blocks, dropout_keys)
            if level < len(self.multipliers) - 1:
                h = self._layer(Downsample, "asymmetric", name=f"down_{level}_resample")(h)
        return self._head(self._middle(h, dropout_keys))


class Decoder(_Network):
    """Maps latents to images."""

    @nn.compact
    def __call__(self, z: Float[Array, "B h w D"], dropout_keys: PRNGKeys | None = None) -> Images:
        """Computes images.

        Args:
          z: latents [B, h, w, D].
          dropout_keys: one key per example; None: no dropout.

        Returns:
          float32 [B, h * factor, w * factor, outputs].

        Raises:
          ValueError: no feature map has an attention resolution, or a dropout rate outside [0, 1).
        """
        self._check(z.shape[1] * self.factor)
        h = self._layer(Conv, self.channels * self.multipliers[-1], name="conv_in")(z)
        h = self._middle(h, dropout_keys)
        for level in reversed(range(len(self.multipliers))):
            h = self._level(h, level, "up", self.blocks + 1, dropout_keys)
            if level > 0:
                h = self._layer(Upsample, name=f"up_{level}_resample")(h)
        return self._head(h)
