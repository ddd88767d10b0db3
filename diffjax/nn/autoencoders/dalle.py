"""Networks of DALL-E's discrete VAE: groups of residual bottlenecks (Ramesh et al. 2021, appendix A.1)."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.autoencoders import check_sides
from diffjax.nn.layers import Conv, Dense, upsample_nearest
from diffjax.typing import Images, Latents, PRNGKeys


class Bottleneck(nn.Module):
    """Residual block of four times ReLU and convolution; all but the last have a quarter of the `features`.

    The skip connection is a 1x1 convolution where the number of channels changes.
    """

    features: int  # output channels
    gain: float  # factor on the residual branch
    kernels: tuple[int, ...] = (3, 3, 3, 1)  # sides of the convolution kernels
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        """Returns features [B, H, W, features]."""
        h, computed = x, {"initializer": self.initializer, "dtype": self.dtype}
        for i, kernel in enumerate(self.kernels):
            width = self.features // 4 if i < len(self.kernels) - 1 else self.features
            layer = Dense if kernel == 1 else partial(Conv, kernel=kernel)
            h = layer(width, **computed, name=f"conv_{i}")(nn.relu(h))
        if x.shape[-1] != self.features:
            x = Dense(self.features, **computed, name="skip")(x)
        return x.astype(self.dtype) + self.gain * h


class _Network(nn.Module):
    """Base class of the encoder and the decoder. It has no dropout: `dropout_keys` are ignored."""

    outputs: int  # output channels
    channels: int = 256  # width of the finest group, a multiple of 4; doubled per halving
    groups: int = 4  # number of resolutions
    blocks: int = 2  # blocks per group
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    @property
    def factor(self) -> int:
        """Ratio of image side to latent side."""
        return 2 ** (self.groups - 1)

    def _check(self):
        if self.channels % 4:
            raise ValueError(
                f"channels={self.channels}: must be a multiple of 4, for bottlenecks of a quarter the width"
            )

    def _group(self, h, level, kernels):
        """Applies the blocks of a level; 0 is the finest."""
        gain = 1 / (self.groups * self.blocks) ** 2
        for i in range(self.blocks):
            width, name = self.channels * 2**level, f"group_{level}_block_{i}"
            h = Bottleneck(width, gain, kernels, self.initializer, self.dtype, name=name)(h)
        return h

    def _head(self, h):
        return Dense(self.outputs, self.initializer, name="conv_out")(nn.relu(h))


class Encoder(_Network):
    """Maps images to logits of codebook entries; 8192 entries and pixels mapped to [0.1, 0.9] as published."""

    pixel_range: tuple[float, float] = (-1.0, 1.0)  # range that pixels are mapped to before the first convolution

    @nn.compact
    def __call__(self, x: Images, dropout_keys: PRNGKeys | None = None) -> Latents:
        """Computes logits per position.

        Args:
          x: images [B, H, W, C] in [-1, 1].
          dropout_keys: ignored.

        Returns:
          Logits, float32 [B, H / factor, W / factor, outputs].

        Raises:
          ValueError: `factor` does not divide the sides, or 4 does not divide `channels`.
        """
        self._check()
        check_sides(x, self.factor)
        low, high = self.pixel_range
        x = x if (low, high) == (-1, 1) else (high - low) / 2 * (x + 1) + low
        h = Conv(self.channels, initializer=self.initializer, dtype=self.dtype, kernel=7, name="conv_in")(x)
        for level in range(self.groups):
            h = self._group(h if level == 0 else nn.max_pool(h, (2, 2), (2, 2)), level, (3, 3, 3, 1))
        return self._head(h)


class Decoder(_Network):
    """Maps relaxed one-hot codes, or codebook entries, to images.

    The published network has 6 `outputs`, location and log scale of a logit-Laplace distribution per colour channel
    (appendix A.3).
    """

    input_channels: int = 128  # channels of the first 1x1 convolution

    @nn.compact
    def __call__(self, z: Float[Array, "B h w D"], dropout_keys: PRNGKeys | None = None) -> Images:
        """Computes images.

        Args:
          z: codes [B, h, w, D].
          dropout_keys: ignored.

        Returns:
          float32 [B, h * factor, w * factor, outputs].

        Raises:
          ValueError: 4 does not divide `channels`.
        """
        self._check()
        h = Dense(self.input_channels, self.initializer, name="conv_in")(z)  # float32 in the published code too
        for level in reversed(range(self.groups)):
            h = self._group(h if level == self.groups - 1 else upsample_nearest(h), level, (1, 3, 3, 3))
        return self._head(h)
