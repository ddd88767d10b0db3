"""Shared layers of all networks: dense, convolution, group norm, dropout, timestep embedding, resampling.

Images are NHWC. Parameters are float32 and are cast to `dtype` for the computation. `initializer` is one of
    "ddpm"   uniform with variance 2 / (fan_in + fan_out), biases zero (Ho et al. 2020);
    "torch"  uniform within 1 / sqrt(fan_in), biases too: PyTorch's default, as in ADM, GLIDE and latent diffusion;
    "zero"   for the last layer of a residual branch (DDPM has 1e-5 times "ddpm").
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
from jaxtyping import Bool, Float

from diffjax.nn.space_sums import repeat_over_space, sum_over_space
from diffjax.nn.target import is_cpu
from diffjax.typing import Labels, PRNGKey, PRNGKeys, Times


def check_choice(kind: str, name: str, choices: tuple[str, ...]) -> str:
    """Returns `name`. Raises ValueError, with the `choices`, if `name` is not one of them."""
    if name not in choices:
        raise ValueError(f"{kind}={name!r}: choose from {', '.join(choices)}")
    return name


def check_dropout(rate: float) -> None:
    """Raises ValueError unless `rate` is in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout={rate}: must be in [0, 1)")


def check_label(label: Labels | None, rows: int) -> None:
    """Raises ValueError for labels without a label embedding table, and for a table without labels."""
    if (label is not None) != (rows > 0):
        raise ValueError(f"num_label_embeddings={rows}: requires label to be {'set' if rows else 'None'}")


def initializers(
    initializer: str, fan_in: int, fused: int
) -> tuple[nn.initializers.Initializer, nn.initializers.Initializer]:
    """Returns the initialisers of a kernel and its bias.

    Args:
      initializer: "ddpm" | "torch" | "zero", see the module's docstring.
      fan_in: inputs of each output.
      fused: number of square kernels that are concatenated in this one, 3 for q, k and v.
    """
    check_choice("initializer", initializer, ("ddpm", "torch", "zero"))
    if initializer == "ddpm":  # the factor gives fused kernels the variance of separate ones
        return nn.initializers.variance_scaling((1 + fused) / 2, "fan_avg", "uniform"), nn.initializers.zeros
    if initializer == "torch":
        bound = 1 / math.sqrt(fan_in)
        uniform = partial(jax.random.uniform, minval=-bound, maxval=bound)
        return uniform, uniform
    return nn.initializers.zeros, nn.initializers.zeros


class Dense(nn.Module):
    """Linear map of the last axis; on images, a 1x1 convolution."""

    features: int  # output channels
    initializer: str = "ddpm"  # "ddpm" | "torch" | "zero"
    bias: bool = True
    fused: int = 1  # number of square kernels concatenated in this one, for "ddpm"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        kernel_init, bias_init = initializers(self.initializer, x.shape[-1], self.fused)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(
            self.dtype
        )  # as one matrix product: faster on a CPU
        if self.bias:
            y = y + self.param("bias", bias_init, (self.features,), jnp.float32).astype(self.dtype)[None, :]
        return y.reshape(*x.shape[:-1], self.features)


class Conv(nn.Module):
    """Convolution with a square kernel."""

    features: int  # output channels
    stride: int = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"  # or ((above, below), (left, right)) in pixels
    initializer: str = "ddpm"  # "ddpm" | "torch" | "zero"
    dtype: DTypeLike = jnp.float32
    kernel: int = 3  # side of the kernel
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        kernel_init, bias_init = initializers(self.initializer, self.kernel**2 * x.shape[-1], 1)
        kernel = self.param("kernel", kernel_init, (self.kernel,) * 2 + (x.shape[-1], self.features), jnp.float32)
        x, kernel, layout = x.astype(self.dtype), kernel.astype(self.dtype), ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (self.stride,) * 2, self.padding, dimension_numbers=layout)
        if not self.bias:
            return y
        bias = self.param("bias", bias_init, (self.features,), jnp.float32).astype(self.dtype)
        return y + repeat_over_space(jnp.broadcast_to(bias[None, :], (len(y), self.features)), y.shape[1:-1])


def unit_norm(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """Returns vectors divided by their Euclidean norm, or by `eps` where the norm is smaller."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), eps)


def level_widths(channels: int, multipliers: Sequence[float]) -> list[int]:
    """Returns the channels of each level of a network, `channels` times each of the `multipliers`.

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
      channels: channels of the input.
      groups: requested number of groups.
      min_channels: minimum channels per group. 0: exactly `groups` groups. Above 0: the largest number of groups, up to
        `groups`, that divides the channels and gives every group at least this many. The networks of EDM (Karras et
        al. 2022) set 4.

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
    """Group normalisation, optionally adaptive: `norm(x) * (1 + scale) + shift`.

    Statistics are float32. The variance is that of deviations from the mean, because E[x^2] - E[x]^2 cancels for inputs
    far from zero. Sums are taken over space before groups, and all scales are folded into one multiply and add.

    Reference: Wu & He 2018; adaptive group norm: ADM (Dhariwal & Nichol 2021), section 3.1.
    """

    groups: int = 32  # number of groups, see `num_groups`
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    min_channels: int = 0  # minimum channels per group; 0: exactly `groups` groups

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B *space C"],
        scale: Float[Array, "B C"] | None = None,
        shift: Float[Array, "B C"] | None = None,
    ) -> Float[Array, "B *space C"]:
        """Returns normalised features of the shape of `x`, in `dtype`; `scale` and `shift` are set together or not."""
        batch, channels = x.shape[0], x.shape[-1]
        groups = num_groups(channels, self.groups, self.min_channels)
        gain = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)[None, :]
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)[None, :]
        space = x.shape[1:-1]
        x = x.astype(jnp.float32)

        def group_mean(x: Float[Array, "B *space C"]) -> Float[Array, "B C"]:
            means = (sum_over_space(x) / math.prod(space)).reshape(batch, groups, -1).mean(-1)
            return jnp.repeat(means, channels // groups, axis=1)

        x = x - repeat_over_space(group_mean(x), space)
        a = gain * jax.lax.rsqrt(group_mean(x * x) + self.epsilon)
        b = jnp.broadcast_to(bias, a.shape)
        if scale is not None and shift is not None:
            scale = 1 + scale.astype(jnp.float32)
            a, b = a * scale, b * scale + shift
        return (x * repeat_over_space(a, space) + repeat_over_space(b, space)).astype(self.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of the last axis, with float32 statistics.

    On a CPU its input passes a barrier, so that the gradient of a residual stream is computed once and stored.
    Otherwise XLA's compiler for CPUs computes this sum over all later blocks again in each reduction of a norm.
    """

    use_fast_variance: bool = False  # Flax's default is E[x^2] - E[x]^2, which cancels for inputs far from zero

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        return super().__call__(jax.lax.optimization_barrier(x) if is_cpu() else x)


class Dropout(nn.Module):
    """Dropout with one key per example, so that the mask of an example does not depend on the batch.

    Each layer folds the checksum of its path into the keys, so the whole network takes one key per example.
    """

    rate: float  # probability that a value is set to 0

    def __call__(self, x: Float[Array, "B ..."], keys: PRNGKeys | None) -> Float[Array, "B ..."]:
        """Returns `x` with values dropped at `rate`, the others divided by 1 - rate; `keys` None: returns `x`."""
        if keys is None or self.rate == 0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, layer)
        mask = jax.vmap(partial(keep_mask, shape=x.shape[1:], rate=self.rate))(keys)
        return jnp.where(mask, x / (1 - self.rate), 0)


def keep_mask(key: PRNGKey, shape: Sequence[int], rate: float) -> Bool[Array, "..."]:
    """Returns values of dropout to keep: independent, False with probability `rate`, rounded to 1/65536.

    Each half of a random 32-bit word decides on one value, as random bits take most of the time of dropout on a CPU.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, ((size + 1) // 2,), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16])[:size]
    return halves.reshape(shape) >= round(rate * 2**16)


def timestep_embedding(t: Times, dim: int, *, convention: str = "ddpm") -> Float[Array, "B dim"]:
    """Returns sines and cosines of t at dim / 2 frequencies from 1 to about 1/10000, float32.

    Args:
      t: times [B].
      dim: number of values, even and at least 4.
      convention: "ddpm" (Ho et al. 2020): sines first, the last frequency is 1/10000. "adm" (Nichol & Dhariwal 2021):
        cosines first, 1/10000 is excluded.

    Raises:
      ValueError: an unknown convention, or `dim` is odd or below 4.
    """
    check_choice("embedding convention", convention, ("ddpm", "adm"))
    if dim % 2 or dim < 4:
        raise ValueError(f"dim={dim}: the width of a timestep embedding must be even and at least 4")
    half = dim // 2
    steps = half - 1 if convention == "ddpm" else half
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / steps)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    waves = (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves if convention == "ddpm" else waves[::-1], axis=-1)


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Returns the mean of each 2x2 square of pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def upsample_nearest(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Returns features of twice the sides, each pixel repeated as a 2x2 square."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


class Downsample(nn.Module):
    """Halves the sides by a 3x3 convolution of stride 2."""

    # "asymmetric": pads one row below and one column to the right (TensorFlow's "SAME", as in DDPM)
    # "symmetric": pads one on every side (PyTorch's 1, as in ADM and latent diffusion)
    padding: str = "asymmetric"
    initializer: str = "ddpm"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        asymmetric = check_choice("downsample padding", self.padding, ("asymmetric", "symmetric")) == "asymmetric"
        padding = "SAME" if asymmetric else ((1, 1), (1, 1))
        return Conv(x.shape[-1], 2, padding, self.initializer, self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles the sides by nearest neighbour, followed by a 3x3 convolution."""

    initializer: str = "ddpm"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        return Conv(x.shape[-1], initializer=self.initializer, dtype=self.dtype, name="conv")(upsample_nearest(x))
