"""The layers that every network shares: dense and convolution, group norm, dropout, time embedding, resampling.

All work on NHWC. Parameters are float32 and are cast to `dtype` for the computation. `initializer` is
    "ddpm"   uniform with variance 2 / (fan_in + fan_out), biases zero (Ho et al. 2020);
    "torch"  uniform within 1 / sqrt(fan_in), biases too: PyTorch's default, so ADM's, GLIDE's, latent diffusion's;
    "zero"   the last layer of a residual branch (DDPM's is 1e-5 times "ddpm").
"""

import math
import zlib
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.typing import Labels, PRNGKeys, Times


def choose(kind: str, name: str, choices: tuple[str, ...]) -> str:
    """Return `name`, or raise ValueError that lists the `choices`."""
    if name not in choices:
        raise ValueError(f"{kind} is {name!r}: choose from {', '.join(choices)}")
    return name


def check_dropout(rate: float) -> None:
    """Raise ValueError for a rate that is none."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout is {rate}: a rate from 0 up to, but not, 1")


def check_label(label: Labels | None, rows: int) -> None:
    """Raise ValueError for labels without a table, and for a table without labels."""
    if (label is not None) != (rows > 0):
        raise ValueError(f"label is {'missing' if label is None else 'given'} but label_rows is {rows}")


def initializers(initializer: str, fan_in: int, fused: int):
    """Those of a kernel and its bias. `fused` square kernels may stand side by side in one, as in q, k, v."""
    choose("initializer", initializer, ("ddpm", "torch", "zero"))
    if initializer == "ddpm":  # the factor gives fused kernels the variance that each would have alone
        return nn.initializers.variance_scaling((1 + fused) / 2, "fan_avg", "uniform"), nn.initializers.zeros
    if initializer == "torch":
        bound = 1 / math.sqrt(fan_in)
        uniform = partial(jax.random.uniform, minval=-bound, maxval=bound)
        return uniform, uniform
    return nn.initializers.zeros, nn.initializers.zeros


class Dense(nn.Module):
    """A linear map of the last axis, which on pictures is the published 1x1 convolution."""

    features: int
    initializer: str = "ddpm"
    bias: bool = True
    fused: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        kernel_init, bias_init = initializers(self.initializer, x.shape[-1], self.fused)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(self.dtype)  # as a matrix: faster on a CPU
        if self.bias:
            y = y + self.param("bias", bias_init, (self.features,), jnp.float32).astype(self.dtype)[None, :]
        return y.reshape(*x.shape[:-1], self.features)


class Conv(nn.Module):
    """A square convolution; `padding` "SAME" or the rows above and below, the columns left and right."""

    features: int
    stride: int = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    initializer: str = "ddpm"
    dtype: DTypeLike = jnp.float32
    kernel: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        kernel_init, bias_init = initializers(self.initializer, self.kernel**2 * x.shape[-1], 1)
        kernel = self.param("kernel", kernel_init, (self.kernel,) * 2 + (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        x, kernel, bias = x.astype(self.dtype), kernel.astype(self.dtype), bias.astype(self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (self.stride,) * 2, self.padding, dimension_numbers=layout)
        return y + bias[None, None, None, :]


def level_widths(channels: int, multipliers: Sequence[float]) -> list[int]:
    """Returns the channels of each level of a network.

    Raises:
      ValueError: a product is not a whole number from 1.
    """
    widths = [channels * multiplier for multiplier in multipliers]
    for multiplier, width in zip(multipliers, widths, strict=True):
        if width < 1 or width != int(width):
            raise ValueError(
                f"multipliers={tuple(multipliers)}: {channels} channels x {multiplier:g} must be a whole number from 1"
                f"; use multiples of 1/{channels}"
            )
    return [int(width) for width in widths]


def num_groups(channels: int, groups: int, min_channels: int = 0) -> int:
    """Returns the number of groups of a group norm.

    Args:
      channels: of the input.
      groups: groups asked for.
      min_channels: least channels of a group. 0: exactly `groups` groups. Above 0: the most groups, up to `groups`,
        that divide the channels and leave every group this many; EDM's networks (Karras et al. 2022) set 4.

    Raises:
      ValueError: `groups` does not divide `channels` while `min_channels` is 0.
    """
    if min_channels:
        most = max(1, min(groups, channels // min_channels))
        return max(g for g in range(1, most + 1) if channels % g == 0)
    if channels % groups:
        fits = math.gcd(channels, groups)
        raise ValueError(f"groups={groups}: must divide the {channels} channels of a group norm; use {fits}")
    return groups


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018), optionally adaptive: `norm(x) * (1 + scale) + shift` (ADM, section 3.1).

    `groups` and `min_channels` set the number of groups: see `num_groups`. Statistics are float32. The variance is that
    of distances to the mean: E[x^2] - E[x]^2 would lose it for inputs far from zero. Sums are taken over space first
    and combined into groups after, and every scale is folded into one multiply and add.
    """

    groups: int = 32
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    min_channels: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B *space C"],
        scale: Float[Array, "B C"] | None = None,
        shift: Float[Array, "B C"] | None = None,
    ) -> Float[Array, "B *space C"]:
        batch, channels = x.shape[0], x.shape[-1]
        groups = num_groups(channels, self.groups, self.min_channels)
        gain = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)[None, :]
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)[None, :]
        space = tuple(range(1, x.ndim - 1))
        x = x.astype(jnp.float32)

        def over_group(means: Float[Array, "B C"]) -> Float[Array, "B C"]:
            return jnp.repeat(means.reshape(batch, groups, -1).mean(-1), channels // groups, axis=1)

        mean = over_group(x.mean(space))
        x = x - jnp.expand_dims(mean, space)
        variance = over_group((x * x).mean(space))
        a, b = gain * jax.lax.rsqrt(variance + self.epsilon), bias
        if scale is not None:
            scale = 1 + scale.astype(jnp.float32)
            a, b = a * scale, b * scale + shift
        return (x * jnp.expand_dims(a, space) + jnp.expand_dims(b, space)).astype(self.dtype)


# Flax's default takes E[x^2] - E[x]^2, which loses the variance of inputs far from zero.
LayerNorm = partial(nn.LayerNorm, use_fast_variance=False)


class Dropout(nn.Module):
    """Dropout whose mask for an example comes from the example's own key, so that it depends on no other example.

    Each layer folds the checksum of its path into the keys: one key an example serves the whole network.
    """

    rate: float

    def __call__(self, x: Float[Array, "B ..."], keys: PRNGKeys | None) -> Float[Array, "B ..."]:
        """`keys` None: no dropout. Kept values are divided by 1 - rate."""
        if keys is None or self.rate == 0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, layer)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(kept, x / (1 - self.rate), 0)


def timestep_embedding(t: Times, dim: int, *, convention: str = "ddpm") -> Float[Array, "B dim"]:
    """Sines and cosines of t at `dim` / 2 frequencies from 1 down to 1/10000, float32.

    "ddpm" (Ho et al. 2020): sines first, the last frequency is 1/10000. "adm" (Nichol & Dhariwal 2021): cosines
    first, the frequency after the last would be 1/10000. Raises ValueError unless `dim` is even and at least 4.
    """
    choose("embedding convention", convention, ("ddpm", "adm"))
    if dim % 2 or dim < 4:
        raise ValueError(f"a time embedding has an even width (number of channels), at least 4, not {dim}")
    half = dim // 2
    steps = half - 1 if convention == "ddpm" else half
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / steps)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    waves = (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves if convention == "ddpm" else waves[::-1], axis=-1)


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """The mean of each 2x2 square."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def nearest(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Every pixel as a 2x2 square."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


class Downsample(nn.Module):
    """Halve the sides by a 3x3 convolution of stride 2.

    `padding` "asymmetric" adds a row below and a column to the right (TensorFlow's 'SAME': DDPM); "symmetric" adds
    one on every side (PyTorch's 1: ADM, latent diffusion).
    """

    padding: str = "asymmetric"
    initializer: str = "ddpm"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        asymmetric = choose("downsample padding", self.padding, ("asymmetric", "symmetric")) == "asymmetric"
        padding = "SAME" if asymmetric else ((1, 1), (1, 1))
        return Conv(x.shape[-1], 2, padding, self.initializer, self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Double the sides by nearest neighbour, then a 3x3 convolution."""

    initializer: str = "ddpm"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        return Conv(x.shape[-1], initializer=self.initializer, dtype=self.dtype, name="conv")(nearest(x))
