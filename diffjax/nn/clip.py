"""CLIP (Radford et al. 2021): image encoders, text encoder and contrastive loss.

The options of the encoders cover the published networks, whose tensors published/tables/clip.py names. The encoders
return embeddings that are not normalised; the contrastive loss takes embeddings of unit length.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from diffjax.nn.attention import AttentionPool, position_embedding
from diffjax.nn.batch_norm import BatchNorm
from diffjax.nn.layers import average_pool
from diffjax.nn.remat import rematerialize
from diffjax.nn.transformer import transformer_from_fields
from diffjax.nn.transformer_layers import add_registers, grid_positions, make_norm
from diffjax.typing import NO_TOKEN, Embeddings, Images, Scalar, Times, Tokens

Mean = Callable[[Any], Any]  # maps a tree of averages over the local examples to averages over all devices

_MAX_LOG_SCALE = math.log(100)  # section 2.5
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default, within 1 / sqrt(fan_in)


class VisionTransformer(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021) with an additional layer norm before the first block.

    The embedding is a linear map of the class token's output. With `timesteps`, there is one class token per timestep,
    as in the code of GLIDE's noised CLIP (Nichol et al. 2021). Registers have no position embeddings, as in the code of
    DINOv2 with registers (Darcet et al. 2024).

    Reference: CLIP (Radford et al. 2021), section 2.4.
    """

    patch: int  # patch side in pixels
    width: int
    layers: int
    heads: int
    dimensions: int  # values of the output embedding; 0: the state of the class token, without a linear map
    mlp_ratio: float = 4
    activation: str = "quick_gelu"  # "quick_gelu" | "gelu" | "gelu_tanh" | "swiglu"
    pixel_mean: Sequence[float] = (0.5,)  # mean of pixels in [0, 1]: one value, or one per channel
    pixel_std: Sequence[float] = (0.5,)  # their standard deviation; 0.5 and 0.5: normalised to [-1, 1]
    timesteps: int = 0  # number of timesteps of noised images; 0: clean images, no time conditioning
    remat: str | bool = "none"  # "none" | "dots" | "blocks": values kept for the backward pass, see `rematerialize`
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # compute dtype of the transformer; parameters are float32
    norm: str = "layer"  # "layer" | "rms"
    qk_norm: bool = False  # RMS norm of queries and keys, per head
    rope: str | bool = False  # rotate queries and keys: False | True (by the index of tokens) | "grid" (of patches)
    value_residual: bool = False  # mix the values of each block with those of the first one
    registers: int = 0  # learned tokens between those of the class and the patches, discarded after the last block

    @nn.compact
    def __call__(
        self,
        images: Images,
        mean: Mean | None = None,
        examples: int | None = None,
        t: Times | None = None,
        return_features: bool = False,
    ) -> Embeddings | Float[Array, "B h w width"]:
        """Computes image embeddings.

        Args:
          images: [B, H, W, C] in [-1, 1].
          mean: ignored; for encoders with batch norm.
          examples: ignored; for encoders with batch norm.
          t: timesteps [B] from 0, rounded to the nearest one. Required with `timesteps`, None without.
          return_features: return the tokens of the patches after the final norm, float32 [B, h, w, width].

        Returns:
          Embeddings, float32 [B, dimensions], not normalised.

        Raises:
          ValueError: `patch` does not divide the sides, the images have another size than the parameters, or `t` does
            not match `timesteps`.
        """
        if (t is None) != (self.timesteps == 0):
            raise ValueError(
                f"timesteps={self.timesteps}: t must be {'set' if self.timesteps else 'None'} for this image encoder"
            )
        batch, height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch={self.patch}: must divide the sides of images of {height}x{width}")
        normal, std = nn.initializers.normal, self.width**-0.5
        x = _normalised(images, self.pixel_mean, self.pixel_std)
        side, options = (self.patch, self.patch), {"use_bias": False, "kernel_init": _UNIFORM, "dtype": self.dtype}
        x = nn.Conv(self.width, side, side, "VALID", **options, name="patch")(x)
        shape = x.shape
        x = x.reshape(batch, -1, self.width)
        if t is None:
            token = self.param("class", normal(std), (self.width,), jnp.float32)[None]
        else:
            nearest = jnp.clip(jnp.round(t), 0, self.timesteps - 1).astype(jnp.int32)
            token = self.param("time", normal(std), (self.timesteps, self.width), jnp.float32)[nearest]
        token = jnp.broadcast_to(token.astype(self.dtype)[:, None], (batch, 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        x = x + position_embedding(self, x.shape[1], self.width, std).astype(self.dtype)[None]
        x = add_registers(self, x, self.registers, std, before=1)
        x = make_norm(self.norm, 1e-5, self.dtype, "norm_in")(x)
        before = 1 + self.registers
        positions = grid_positions(height // self.patch, width // self.patch, before)
        x = transformer_from_fields(self)(x, "all", positions=positions)
        return x[:, before:].reshape(shape) if return_features else _projected(x[:, 0], self.dimensions)


class Bottleneck(nn.Module):
    """ResNet bottleneck that halves the sides by average pools, which avoids aliasing (section 2.4)."""

    width: int  # channels of the 3x3 convolution; the output has four times as many
    halve: bool  # whether to halve the sides
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w 4*width"]:
        pool = average_pool if self.halve else lambda x: x
        conv = partial(_conv, dtype=self.dtype)
        h = nn.relu(self.norm(name="norm_0")(conv(self.width, 1, name="conv_0")(x)))
        h = nn.relu(self.norm(name="norm_1")(conv(self.width, 3, name="conv_1")(h)))
        h = conv(4 * self.width, 1, name="conv_2")(pool(h))
        h = self.norm(scale_init=nn.initializers.zeros, name="norm_2")(h)
        if self.halve or x.shape[-1] != 4 * self.width:
            x = self.norm(name="norm_skip")(conv(4 * self.width, 1, name="conv_skip")(pool(x)))
        return nn.relu(x + h)


class ModifiedResNet(nn.Module):
    """CLIP's ResNet: a stem of three convolutions, average pools and a final attention pool.

    The published networks have `width` / 2 heads.

    Reference: CLIP (Radford et al. 2021), section 2.4.
    """

    layers: Sequence[int]  # blocks per stage, (3, 4, 6, 3) for ResNet-50; each stage after the first halves the sides
    heads: int  # attention heads of the final pool
    dimensions: int  # values of the output embedding
    width: int = 64  # channels of the first stage's 3x3 convolutions; doubled per stage
    pixel_mean: Sequence[float] = (0.5,)  # mean of pixels in [0, 1]: one value, or one per channel
    pixel_std: Sequence[float] = (0.5,)  # their standard deviation
    remat: str | bool = "none"  # "none" | "dots" | "blocks": values kept for the backward pass, see `rematerialize`
    dtype: DTypeLike = jnp.float32  # compute dtype of convolutions; norm statistics and attention are float32

    @nn.compact
    def __call__(
        self,
        images: Images,
        mean: Mean | None = None,
        examples: int | None = None,
        t: Times | None = None,
        return_features: bool = False,
    ) -> Embeddings | Float[Array, "B h w C"]:
        """Computes image embeddings.

        Args:
          images: [B, H, W, C] in [-1, 1].
          mean: averages a tree over devices, in training: batch norms then use the statistics of the global batch and
            update the collection "batch_stats", which must be mutable. None: evaluation with these running averages.
          examples: batch size over all devices; None: B.
          t: must be None.
          return_features: return the output of the last stage, [B, h, w, C].

        Returns:
          Embeddings, float32 [B, dimensions], not normalised.

        Raises:
          ValueError: the sides cannot be halved often enough, `heads` does not divide the channels, the images have
            another size than the parameters, or `t` is set.
        """
        if t is not None:
            raise ValueError("t: a ResNet is not conditioned on time; use a vision transformer for noised images")
        if self.width % 2:
            raise ValueError(f"width={self.width}: must be even, as the first layers have half of it; add one")
        halvings = len(self.layers) + 1
        if any(side % 2**halvings for side in images.shape[1:3]):
            raise ValueError(
                f"layers={tuple(self.layers)}: {len(self.layers)} stages require image sides that are multiples of "
                f"{2**halvings}, not {images.shape[1]}x{images.shape[2]}; resize the images or use fewer stages"
            )
        norm = partial(BatchNorm, mean, examples, dtype=self.dtype)
        conv = partial(_conv, dtype=self.dtype)
        x = _normalised(images, self.pixel_mean, self.pixel_std)
        for i, width in enumerate((self.width // 2, self.width // 2, self.width)):
            x = conv(width, 3, stride=2 if i == 0 else 1, name=f"conv_{i}")(x)
            x = nn.relu(norm(name=f"norm_{i}")(x))
        x = average_pool(x)
        block = rematerialize(Bottleneck, self.remat)
        for stage, blocks in enumerate(self.layers):
            for i in range(blocks):
                halve = stage > 0 and i == 0
                x = block(self.width * 2**stage, halve, norm, self.dtype, name=f"stage_{stage}_block_{i}")(x)
        return x if return_features else AttentionPool(self.dimensions, self.heads, name="pool")(x)


class TextTransformer(nn.Module):
    """Causal text transformer; the embedding is a linear map of the last token's state.

    Reference: CLIP (Radford et al. 2021), section 2.4.
    """

    vocabulary: int  # number of token ids
    width: int
    layers: int
    heads: int
    dimensions: int  # values of the output embedding; 0: the state of the last token, without a linear map
    mlp_ratio: float = 4
    activation: str = "quick_gelu"  # "quick_gelu" | "gelu" | "gelu_tanh" | "swiglu"
    padding: int = 0  # token id at positions without a token; 0 in CLIP, the end token in Stable Diffusion 1
    remat: str | bool = "none"  # "none" | "dots" | "blocks": values kept for the backward pass, see `rematerialize`
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # compute dtype of the transformer; parameters are float32
    norm: str = "layer"  # "layer" | "rms"
    rope: bool = False  # rotate queries and keys by their positions, besides the learned position embeddings
    qk_norm: bool = False  # RMS norm of queries and keys, per head
    value_residual: bool = False  # mix the values of each block with those of the first one

    @nn.compact
    def __call__(self, tokens: Tokens) -> tuple[Float[Array, "B L W"], Embeddings]:
        """Computes token states and text embeddings.

        Args:
          tokens: token ids [B, L]; NO_TOKEN is allowed only after the last token of a text.

        Returns:
          Outputs of the final layer norm, float32 [B, L, width], at NO_TOKEN those of the token `padding`; and
          embeddings, float32 [B, dimensions], not normalised.

        Raises:
          ValueError: L differs from that of the parameters, or `padding` is not in the vocabulary.
        """
        if not 0 <= self.padding < self.vocabulary:
            raise ValueError(f"padding={self.padding}: must be a token id, from 0 to {self.vocabulary - 1}")
        length, normal = tokens.shape[1], nn.initializers.normal
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=normal(0.02), name="token")
        x = embed(jnp.where(tokens == NO_TOKEN, self.padding, tokens))  # the causal mask hides it from the last token
        x = x + position_embedding(self, length, self.width, 0.01).astype(self.dtype)[None]
        states = transformer_from_fields(self)(x, "causal")
        last = jnp.where(tokens != NO_TOKEN, jnp.arange(length)[None, :], 0).max(axis=1)
        read = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        return states, _projected(read, self.dimensions)


def _projected(x: Float[Array, "B W"], dimensions: int) -> Embeddings:
    """Returns a linear map "out" of states; states themselves for 0 dimensions."""
    if not dimensions:
        return x
    return nn.Dense(dimensions, use_bias=False, kernel_init=nn.initializers.normal(x.shape[-1] ** -0.5), name="out")(x)


def _normalised(images: Images, mean: Sequence[float], std: Sequence[float]) -> Images:
    """Returns images in [-1, 1] normalised by the mean and standard deviation of pixels in [0, 1]."""
    channels = images.shape[-1]
    if not {len(mean), len(std)} <= {1, channels}:
        raise ValueError(
            f"pixel_mean, pixel_std: must have 1 or {channels} values for images of {channels} channels, "
            f"not {len(mean)} and {len(std)}"
        )
    center, scale = (np.asarray(values, np.float32)[None, None, None, :] for values in (mean, std))
    return images * (0.5 / scale) + (0.5 - center) / scale


def _conv(features: int, kernel: int, *, stride: int = 1, dtype: DTypeLike, name: str) -> nn.Conv:
    padding = kernel // 2  # on both ends, unlike "SAME" with stride 2
    options = {"use_bias": False, "kernel_init": _UNIFORM, "dtype": dtype, "name": name}
    return nn.Conv(features, (kernel, kernel), stride, padding, **options)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def clamped_logit_scale(log_scale: Scalar, mean: Mean = lambda x: x) -> Scalar:
    """Returns the learned log scale of the logits clamped to at most ln(100).

    Above the limit, the gradient is zero only where gradient descent would increase the scale further.

    Args:
      log_scale: learned scalar, ln(1 / 0.07) at initialisation.
      mean: averages the gradient over devices, so that all of them take the same decision.

    Reference: CLIP (Radford et al. 2021), section 2.5.
    """
    return jnp.minimum(log_scale, _MAX_LOG_SCALE)


def _clamped_logit_scale_forward(log_scale, mean):
    return clamped_logit_scale(log_scale, mean), log_scale


def _clamped_logit_scale_backward(mean, log_scale, cotangent):
    return (jnp.where((log_scale < _MAX_LOG_SCALE) | (mean(cotangent) > 0), cotangent, 0.0),)


clamped_logit_scale.defvjp(_clamped_logit_scale_forward, _clamped_logit_scale_backward)


def clip_loss(
    images: Embeddings,
    texts: Embeddings,
    all_images: Float[Array, "N D"],
    all_texts: Float[Array, "N D"],
    place: Int[Array, " B"],
    scale: Scalar,
) -> tuple[Float[Array, " B"], Int[Array, " B"]]:
    """Computes the symmetric contrastive loss of image-text pairs.

    Args:
      images: image embeddings of this device [B, D], of unit length.
      texts: text embeddings of the same pairs [B, D], of unit length.
      all_images: image embeddings of all devices [N, D].
      all_texts: text embeddings of all devices [N, D].
      place: index of each pair among the N pairs of all devices, int [B].
      scale: scale of the logits.

    Returns:
      Mean of the image-to-text and text-to-image cross entropies in nats, float32 [B]; and the index among `all_texts`
      of the most likely text of each image, int [B].

    Reference: CLIP (Radford et al. 2021), figure 3.
    """

    def logits(queries, keys):  # full precision: the scale amplifies the rounding of accelerators
        return scale * jnp.einsum("bd,nd->bn", queries, keys, precision=lax.Precision.HIGHEST)

    def cross_entropy(logits):
        positive = jnp.take_along_axis(logits, place[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - positive

    images, texts, all_images, all_texts = (x.astype(jnp.float32) for x in (images, texts, all_images, all_texts))
    by_image, by_text = logits(images, all_texts), logits(texts, all_images)
    return (cross_entropy(by_image) + cross_entropy(by_text)) / 2, by_image.argmax(axis=1)
