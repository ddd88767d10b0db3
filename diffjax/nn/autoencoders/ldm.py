"""Latent diffusion's first stage (Rombach et al. 2022, appendix G), which is VQGAN's (Esser et al. 2021, table 7)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.attention import AttentionBlock
from diffjax.nn.autoencoders import check_sides
from diffjax.nn.layers import Conv, Downsample, GroupNorm, Upsample
from diffjax.nn.resblock import ResBlock
from diffjax.typing import Images, Latents, PRNGKeys


class _Network(nn.Module):
    """What the encoder and the decoder share."""

    outputs: int  # of the encoder: twice the latent's channels for a Gaussian
    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 4)  # width of each level, finest first, in units of `channels`
    blocks: int = 2  # residual blocks a level of the encoder; the decoder has one more
    attention_resolutions: Sequence[int] = ()  # heights of the feature maps that attend
    middle_attention: bool = True
    dropout: float = 0.0
    norm_groups: int = 32
    norm_min_channels: int = 0  # least channels of a group; 0: exactly `norm_groups` groups: see layers.num_groups
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    @property
    def factor(self) -> int:
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
        h = nn.silu(GroupNorm(**self._normed, name="norm_out")(h))
        return Conv(self.outputs, initializer=self.initializer, name="conv_out")(h)

    def _check(self, height):
        """Raise ValueError for what would otherwise fail late or be ignored; `height` is the picture's."""
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: a rate from 0 up to, but not, 1")
        heights = [height >> level for level in range(len(self.multipliers))]
        if set(self.attention_resolutions) - set(heights):
            raise ValueError(f"attention_resolutions {tuple(self.attention_resolutions)} are not all among {heights}")


class Encoder(_Network):
    """From a picture to a latent, or to the mean and log-variance of one, side by side."""

    @nn.compact
    def __call__(self, x: Images, dropout_keys: PRNGKeys | None = None) -> Latents:
        """Return float32 [B, H / factor, W / factor, outputs]; `x` in [-1, 1]. `dropout_keys` None: no dropout.

        Raises ValueError for sides that are no multiples of `factor`, for an attention resolution that no feature map
        has, and for a bad rate of dropout.
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
    """From a latent back to a picture."""

    @nn.compact
    def __call__(self, z: Float[Array, "B h w D"], dropout_keys: PRNGKeys | None = None) -> Images:
        """Return float32 [B, h * factor, w * factor, outputs]. `dropout_keys` None: no dropout.

        Raises ValueError for an attention resolution that no feature map has, and for a bad rate of dropout.
        """
        self._check(z.shape[1] * self.factor)
        h = self._layer(Conv, self.channels * self.multipliers[-1], name="conv_in")(z)
        h = self._middle(h, dropout_keys)
        for level in reversed(range(len(self.multipliers))):
            h = self._level(h, level, "up", self.blocks + 1, dropout_keys)
            if level > 0:
                h = self._layer(Upsample, name=f"up_{level}_resample")(h)
        return self._head(h)
