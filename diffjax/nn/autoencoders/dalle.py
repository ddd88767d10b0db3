"""DALL-E's discrete VAE: residual bottlenecks in groups, of doubling width (Ramesh et al. 2021, appendix A.1)."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.autoencoders import check_sides
from diffjax.nn.layers import Conv, Dense, nearest
from diffjax.typing import Images, Latents, PRNGKeys


class Bottleneck(nn.Module):
    """Add to x, or to its 1x1 convolution where the width changes, `gain` times four of ReLU and convolution.

    `kernels` are the convolutions' sides; all but the last have a quarter of the `features`.
    """

    features: int
    gain: float
    kernels: tuple[int, ...] = (3, 3, 3, 1)
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        h, computed = x, {"initializer": self.initializer, "dtype": self.dtype}
        for i, kernel in enumerate(self.kernels):
            width = self.features // 4 if i < len(self.kernels) - 1 else self.features
            layer = Dense if kernel == 1 else partial(Conv, kernel=kernel)
            h = layer(width, **computed, name=f"conv_{i}")(nn.relu(h))
        if x.shape[-1] != self.features:
            x = Dense(self.features, **computed, name="skip")(x)
        return x.astype(self.dtype) + self.gain * h


class _Network(nn.Module):
    """What the encoder and the decoder share. There is no dropout: `dropout_keys` are taken and not used."""

    outputs: int
    channels: int = 256  # width of the finest group, a multiple of 4; it doubles with every halving
    groups: int = 4
    blocks: int = 2  # a group
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    @property
    def factor(self) -> int:
        return 2 ** (self.groups - 1)

    def _check(self):
        if self.channels % 4:
            raise ValueError(f"channels is {self.channels}: a multiple of 4, as bottlenecks are a quarter as wide")

    def _group(self, h, level, kernels):
        """The blocks of a `level`, 0 the finest."""
        gain = 1 / (self.groups * self.blocks) ** 2
        for i in range(self.blocks):
            width, name = self.channels * 2**level, f"group_{level}_block_{i}"
            h = Bottleneck(width, gain, kernels, self.initializer, self.dtype, name=name)(h)
        return h

    def _head(self, h):
        return Dense(self.outputs, self.initializer, name="conv_out")(nn.relu(h))


class Encoder(_Network):
    """From a picture to the logits of codes; the published one has 8192 and sees pixels mapped to [0.1, 0.9]."""

    @nn.compact
    def __call__(self, x: Images, dropout_keys: PRNGKeys | None = None) -> Latents:
        """Return float32 [B, H / factor, W / factor, outputs].

        Raises ValueError unless `factor` divides both sides and 4 divides `channels`.
        """
        self._check()
        check_sides(x, self.factor)
        h = Conv(self.channels, initializer=self.initializer, dtype=self.dtype, kernel=7, name="conv_in")(x)
        for level in range(self.groups):
            h = self._group(h if level == 0 else nn.max_pool(h, (2, 2), (2, 2)), level, (3, 3, 3, 1))
        return self._head(h)


class Decoder(_Network):
    """From (relaxed) one-hot codes or their vectors to a picture; the published one gives two values a channel.

    They are the location and log-scale of a logit-Laplace distribution (appendix A.3): `outputs` is 6.
    """

    input_channels: int = 128  # of the 1x1 convolution that comes first, 0: none

    @nn.compact
    def __call__(self, z: Float[Array, "B h w D"], dropout_keys: PRNGKeys | None = None) -> Images:
        """Return float32 [B, h * factor, w * factor, outputs]. Raises ValueError unless 4 divides `channels`."""
        self._check()
        h = Dense(self.input_channels, self.initializer, name="conv_in")(z)  # float32 in the published code too
        for level in reversed(range(self.groups)):
            h = self._group(h if level == self.groups - 1 else nearest(h), level, (1, 3, 3, 3))
        return self._head(h)
