"""EDM2's UNet (Karras et al. 2024), whose layers preserve the magnitude of activations.

The magnitude of a vector is its root mean square. Weights have magnitude 1 per output, in the forward pass and, after
each training step, in the parameters too (`normalize_kernels`): so activations and weights do not grow during training,
and the learning rate alone sets the relative change of the weights. There are no biases and no group norms.

Reference: "Analyzing and improving the training dynamics of diffusion models", sections 2.2 to 2.5, appendix B.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from diffjax.nn.attention import attend
from diffjax.nn.layers import Dropout, average_pool, check_dropout, check_label, level_widths, upsample_nearest
from diffjax.nn.remat import rematerialize
from diffjax.typing import Images, Labels, PRNGKeys, Times

UNIT_KERNEL = "unit_kernel"  # name of the parameters that `normalize_kernels` normalises
_EPSILON = 1e-4
_SILU_MAGNITUDE = 0.596  # of SiLU on standard normal inputs


def normalize(x: Array, axis: int | Sequence[int] = -1) -> Array:
    """Returns `x` with magnitude 1 over some axes: eq. 66; over channels pixel norm, eq. 30.

    Args:
      axis: axes over which the magnitude is computed, in float32.
    """
    magnitude = jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=axis, keepdims=True))
    return x / (magnitude + _EPSILON).astype(x.dtype)


def normalize_kernels(params: Any) -> Any:
    """Returns parameters with the kernels of magnitude-preserving layers normalised: forced weight normalisation.

    Reference: section 2.3, algorithm 1.
    """

    def constrain(path, leaf):
        is_kernel = path and getattr(path[-1], "key", None) == UNIT_KERNEL
        return normalize(leaf, tuple(range(leaf.ndim - 1))) if is_kernel else leaf

    return jax.tree_util.tree_map_with_path(constrain, params)


def mp_silu(x: Array) -> Array:
    """SiLU with outputs of magnitude 1 for standard normal inputs: eq. 81."""
    return nn.silu(x) / _SILU_MAGNITUDE


def mp_sum(a: Array, b: Array, share: float) -> Array:
    """Returns the sum of two independent inputs of equal magnitude, with that magnitude: eq. 88.

    Args:
      share: share t of `b`; 1 - t is that of `a`.
    """
    return ((1 - share) * a + share * b) / ((1 - share) ** 2 + share**2) ** 0.5


def mp_concatenate(a: Float[Array, "... A"], b: Float[Array, "... B"], share: float) -> Float[Array, "... A+B"]:
    """Concatenates channels of two inputs so that both contribute by their shares to a later layer: eq. 103."""
    scale = ((a.shape[-1] + b.shape[-1]) / ((1 - share) ** 2 + share**2)) ** 0.5
    return jnp.concatenate(
        [scale * (1 - share) / a.shape[-1] ** 0.5 * a, scale * share / b.shape[-1] ** 0.5 * b], axis=-1
    )


class FourierFeatures(nn.Module):
    """Random Fourier features of magnitude 1, which are not trained: eq. 75."""

    features: int
    bandwidth: float = 1.0

    @nn.compact
    def __call__(self, t: Times) -> Float[Array, "B F"]:
        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, maxval=2 * jnp.pi)

        shape = (self.features,)
        frequencies = self.param("frequencies", nn.initializers.normal(2 * jnp.pi), shape)
        phases = lax.stop_gradient(self.param("phases", uniform, shape))
        angles = t.astype(jnp.float32)[:, None] * self.bandwidth * lax.stop_gradient(frequencies)[None, :]
        return 2**0.5 * jnp.cos(angles + phases[None, :])


def _unit_kernel(module: nn.Module, shape: tuple[int, ...], gain: Array | float, dtype: DTypeLike) -> Array:
    """Returns the normalised kernel of a layer times gain / sqrt(fan_in); its last axis is that of the outputs."""
    axes = tuple(range(len(shape) - 1))

    def init(key: Array, shape: tuple[int, ...]) -> Array:
        return normalize(jax.random.normal(key, shape), axes)

    kernel = normalize(module.param(UNIT_KERNEL, init, shape), axes)
    return (kernel * (gain / math.prod(shape[:-1]) ** 0.5)).astype(dtype)


class MPDense(nn.Module):
    """Magnitude-preserving linear map of the last axis: eq. 47."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... I"], gain: Array | float = 1.0) -> Float[Array, "... O"]:
        kernel = _unit_kernel(self, (x.shape[-1], self.features), gain, self.dtype)
        return x.astype(self.dtype) @ kernel


class MPConv(nn.Module):
    """Magnitude-preserving 3x3 convolution: eq. 47."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], gain: Array | float = 1.0) -> Float[Array, "B H W O"]:
        kernel = _unit_kernel(self, (3, 3, x.shape[-1], self.features), gain, self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x.astype(self.dtype), kernel, (1, 1), "SAME", dimension_numbers=layout)


class MPEmbed(nn.Module):
    """Magnitude-preserving embedding of labels: `MPDense` of one-hot vectors of magnitude 1."""

    rows: int
    features: int

    @nn.compact
    def __call__(self, label: Labels) -> Float[Array, "B F"]:
        table = _unit_kernel(self, (self.rows, self.features), self.rows**0.5, jnp.float32)
        return table[label]


class Block(nn.Module):
    """Residual block with optional self-attention: figure 21. Fields as in `EDM2UNet`."""

    features: int
    is_encoder: bool  # pixel norm on the main branch, whose width changes before the residual branch
    resample: str | None  # None | "down" | "up"
    heads: int  # 0: no attention
    dropout: float
    residual_balance: float
    attention_balance: float
    max_activation: float
    attention: str
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Float[Array, "B E"], dropout_keys: PRNGKeys | None = None
    ) -> Float[Array, "B h w F"]:
        conv, dense = (partial(layer, dtype=self.dtype) for layer in (MPConv, MPDense))
        if self.resample:
            x = average_pool(x) if self.resample == "down" else upsample_nearest(x)

        def skip(x: Array) -> Array:
            return x if x.shape[-1] == self.features else dense(self.features, name="skip")(x)

        if self.is_encoder:
            x = normalize(skip(x))
        gain = self.param("emb_gain", nn.initializers.zeros, ())
        scale = 1 + dense(self.features, name="emb")(emb, gain)
        h = conv(self.features, name="conv_0")(mp_silu(x))
        h = Dropout(self.dropout, name="dropout")(mp_silu(h * scale[:, None, None, :]), dropout_keys)
        h = conv(self.features, name="conv_1")(h)
        x = mp_sum(x if self.is_encoder else skip(x), h, self.residual_balance)

        if self.heads:
            batch, channels = x.shape[0], x.shape[-1]
            qkv = dense(3 * channels, name="qkv")(x).reshape(batch, -1, 3, self.heads, channels // self.heads)
            qkv = normalize(qkv).reshape(batch, -1, 3, channels)
            h = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.heads, self.attention)
            h = dense(channels, name="out")(h).reshape(x.shape)
            x = mp_sum(x, h, self.attention_balance)
        return jnp.clip(x, -self.max_activation, self.max_activation)


class EDM2UNet(nn.Module):
    """Predicts the denoising target from a noisy image and its time, with the interface of UNet.

    The defaults are those of EDM2-S; EDM2-XS has 128 channels, M 256, L 320, XL 384, XXL 448. Inputs have magnitude 1
    with the parameterizations edm, consistency and trig_flow.
    """

    out_channels: int
    channels: int = 192  # channels at the first level
    multipliers: Sequence[int] = (1, 2, 3, 4)  # channels of each level, in units of `channels`
    blocks: int = 3  # blocks per level; the decoder has one more
    attention_resolutions: Sequence[int] = (16, 8)  # heights of feature maps with attention, in pixels
    head_channels: int = 64  # channels per attention head
    dropout: float = 0.0  # rate, in residual branches
    num_label_embeddings: int = 0  # rows of the label embedding table; 0: unconditional on labels
    bandwidth: float = 1.0  # of the Fourier features of the time; 0.001 for times on the scale 0 to 1000
    label_balance: float = 0.5  # share of the label in the embedding, the other is that of the time
    concat_balance: float = 0.5  # share of the skip connections
    residual_balance: float = 0.3  # share of the residual branch
    attention_balance: float = 0.3  # share of attention
    max_activation: float = 256.0  # activations of blocks are clipped to this
    remat: str | bool = "none"  # "none" | "dots" | "blocks": values kept for the backward pass, see `rematerialize`
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # compute dtype; parameters, magnitudes, softmax and output are float32

    @nn.compact
    def __call__(
        self,
        x: Images,
        t: Times,
        *,
        label: Labels | None = None,
        embedding: Float[Array, "B E"] | None = None,
        context: Float[Array, "B L D"] | None = None,
        context_mask: Bool[Array, "B L"] | None = None,
        augment_label: Float[Array, "B A"] | None = None,
        dropout_keys: PRNGKeys | None = None,
        return_features: bool = False,
    ) -> Images:
        """Computes the network output.

        Args:
          x: noisy images [B, H, W, C].
          t: times [B]: log(sigma) / 4 with EDM's parameterization.
          label: class labels [B], rows of the label embedding table.
          embedding: vector condition [B, E], whose map is added to the embedding as the label's is.
          context: must be None, as is context_mask: the network has no cross-attention.
          augment_label: parameters [B, A] of the augmentation, added as `embedding` is.
          dropout_keys: one key per example; None: no dropout.
          return_features: return the features of the last encoder block, float32 [B, h, w, F].

        Returns:
          float32 [B, H, W, out_channels], zero at initialisation.

        Raises:
          ValueError: an unknown option, sides that cannot be halved once per level after the first, an attention
            resolution that no feature map has, a `context`, or `label` does not match `num_label_embeddings`.
        """
        levels, widths = len(self.multipliers), level_widths(self.channels, self.multipliers)
        self._check(x, label, context)
        emb = MPDense(max(widths), name="time")(FourierFeatures(widths[0], self.bandwidth, name="fourier")(t))
        if label is not None:
            emb = mp_sum(emb, MPEmbed(self.num_label_embeddings, max(widths), name="label")(label), self.label_balance)
        for name, values in (("embedding", embedding), ("augment", augment_label)):
            if values is not None:
                emb = mp_sum(emb, MPDense(max(widths), name=name)(values.astype(jnp.float32)), self.label_balance)
        emb = mp_silu(emb).astype(self.dtype)  # common to all blocks

        shared = (self.dropout, self.residual_balance, self.attention_balance, self.max_activation)
        make = rematerialize(Block, self.remat)

        def block(h, width, name, is_encoder, resample=None, attends=False):
            heads = width // self.head_channels if attends else 0
            options = (width, is_encoder, resample, heads, *shared, self.attention, self.dtype)
            return make(*options, name=name)(h, emb, dropout_keys)

        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)  # the ones replace biases
        h = MPConv(widths[0], dtype=self.dtype, name="conv_in")(h)
        skips = [h]
        for level, width in enumerate(widths):
            if level:
                h = block(h, widths[level - 1], f"down_{level}", True, "down")
                skips.append(h)
            for i in range(self.blocks):
                attends = h.shape[1] in self.attention_resolutions
                h = block(h, width, f"down_{level}_block_{i}", True, attends=attends)
                skips.append(h)
        if return_features:
            return h.astype(jnp.float32)

        for level in reversed(range(levels)):
            width = h.shape[-1]
            if level == levels - 1:
                h = block(h, width, "middle_0", False, attends=True)
                h = block(h, width, "middle_1", False)
            else:
                h = block(h, width, f"up_{level}", False, "up")
            for i in range(self.blocks + 1):
                h = mp_concatenate(h, skips.pop(), self.concat_balance)
                attends = h.shape[1] in self.attention_resolutions
                h = block(h, widths[level], f"up_{level}_block_{i}", False, attends=attends)
        gain = self.param("out_gain", nn.initializers.zeros, ())
        return MPConv(self.out_channels, name="conv_out")(h.astype(jnp.float32), gain)

    def _check(self, x: Array, label: Array | None, context: Array | None) -> None:
        """Raises ValueError for settings that would fail later or be ignored."""
        levels, widths = len(self.multipliers), level_widths(self.channels, self.multipliers)
        check_dropout(self.dropout)
        check_label(label, self.num_label_embeddings)
        if context is not None:
            raise ValueError("architecture=edm2: does not support conditions with cross-attention; use a unet or a dit")
        if x.shape[1] % 2 ** (levels - 1) or x.shape[2] % 2 ** (levels - 1):
            raise ValueError(
                f"multipliers={tuple(self.multipliers)}: {levels - 1} halvings require sides that are multiples of "
                f"{2 ** (levels - 1)}, not {x.shape[1:3]}; use fewer levels"
            )
        sides = [x.shape[1] >> level for level in range(levels)]
        if set(self.attention_resolutions) - set(sides):
            raise ValueError(f"attention_resolutions={tuple(self.attention_resolutions)}: must be among {sides}")
        attended = [width for side, width in zip(sides, widths, strict=True) if side in self.attention_resolutions]
        if any(width % self.head_channels for width in (*attended, widths[-1])):
            raise ValueError(f"head_channels={self.head_channels}: must divide the channels of attention, {attended}")
