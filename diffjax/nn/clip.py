"""CLIP (Radford et al. 2021): encoders of images and of texts, and the loss that they learn from.

The encoders' options are those of the published networks, whose weights nn/pretrained/clip_checkpoint.py reads. Embeddings come out as
they are; it is their directions that are compared.
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

from diffjax.nn.attention import AttentionPool, places
from diffjax.nn.batch_norm import BatchNorm
from diffjax.nn.layers import LayerNorm, average_pool
from diffjax.nn.transformer import of_fields
from diffjax.typing import NO_TOKEN, Embeddings, Images, Scalar, Times, Tokens

Mean = Callable[[Any], Any]  # averages over the examples at hand -> over those of all devices (typing.Moment)

_LIMIT = math.log(100)  # of the logits' log scale, section 2.5
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # within 1 / sqrt(fan_in): PyTorch's


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) with one more norm before it, read at its class token.

    One that is told the time has a class token for each: so GLIDE's noised CLIP has in its code (Nichol et al. 2021).
    """

    patch: int  # side of the square of pixels that a token is made of
    width: int
    layers: int
    heads: int
    dimensions: int  # of the embedding
    mlp_ratio: float = 4
    activation: str = "quick_gelu"  # "quick_gelu" | "gelu"
    pixel_mean: Sequence[float] = (0.5,)  # what pixels in [0, 1] are normalised by, a number for each channel or for
    pixel_std: Sequence[float] = (0.5,)  # all; 0.5 and 0.5 leave those in [-1, 1] as they are
    timesteps: int = 0  # that it is told apart, 0, 1, ... where images are noised; 0: it is told none
    remat: bool = False  # compute each block again in the backward pass instead of keeping it
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # of the transformer's computation

    @nn.compact
    def __call__(
        self, images: Images, mean: Mean | None = None, examples: int | None = None, t: Times | None = None
    ) -> Embeddings:
        """Return float32 embeddings; `images` in [-1, 1]. `mean` and `examples` are for encoders with batch norms.

        `t` is the time of each image, counted from zero, of which the nearest of the timesteps is told. Raises
        ValueError for sides that the patch does not divide, images of another size than the parameters', and a time
        where there are no timesteps or none where there are.
        """
        if (t is None) != (self.timesteps == 0):
            raise ValueError(f"timesteps is {self.timesteps}: an image encoder is told the time where it has any, only")
        batch, height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"images of {height}x{width} cannot be cut into patches of {self.patch}x{self.patch}")
        normal, std = nn.initializers.normal, self.width**-0.5
        x = _normalised(images, self.pixel_mean, self.pixel_std)
        side, options = (self.patch, self.patch), {"use_bias": False, "kernel_init": _UNIFORM, "dtype": self.dtype}
        x = nn.Conv(self.width, side, side, "VALID", **options, name="patch")(x).reshape(batch, -1, self.width)
        if t is None:
            token = self.param("class", normal(std), (self.width,), jnp.float32)[None]
        else:
            nearest = jnp.clip(jnp.round(t), 0, self.timesteps - 1).astype(jnp.int32)
            token = self.param("time", normal(std), (self.timesteps, self.width), jnp.float32)[nearest]
        token = jnp.broadcast_to(token.astype(self.dtype)[:, None], (batch, 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        x = x + places(self, x.shape[1], self.width, std).astype(self.dtype)[None]
        x = LayerNorm(1e-5, dtype=self.dtype, name="norm_in")(x)
        x = of_fields(self)(x, "all")[:, 0]
        return nn.Dense(self.dimensions, use_bias=False, kernel_init=normal(std), name="out")(x)


class Bottleneck(nn.Module):
    """ResNet's, which is made half as wide and high by average pools, so that nothing is aliased (section 2.4)."""

    width: int  # of the 3x3 convolution; four times as many channels come out
    halve: bool
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
    """CLIP's ResNet: three convolutions before the blocks, average pools, attention in the end (section 2.4).

    Published ones have `width` / 2 heads.
    """

    layers: Sequence[int]  # blocks of each stage, (3, 4, 6, 3) of a ResNet-50; each after the first halves the sides
    heads: int  # of the attention in the end
    dimensions: int  # of the embedding
    width: int = 64  # of the first stage's 3x3 convolutions; doubled with every stage
    pixel_mean: Sequence[float] = (0.5,)  # as a VisionTransformer's
    pixel_std: Sequence[float] = (0.5,)
    remat: bool = False  # compute each block again in the backward pass instead of keeping it
    dtype: DTypeLike = jnp.float32  # of the convolutions; norms' statistics and the attention are float32

    @nn.compact
    def __call__(
        self, images: Images, mean: Mean | None = None, examples: int | None = None, t: Times | None = None
    ) -> Embeddings:
        """Return float32 embeddings; `images` in [-1, 1].

        In training batch norms normalise by the statistics of all devices, whose averages `mean` gives, and keep them
        in the collection "batch_stats", which is to be mutable; `examples` is how many all devices have (None: those at
        hand). Without `mean` they normalise by what they kept.

        Raises ValueError for sides that cannot be halved as often as is asked, for channels that the heads do not
        divide, for images of another size than the parameters', and for a time.
        """
        if t is not None:
            raise ValueError("a ResNet is told no time: take a vision transformer for noised images")
        if self.width % 2:
            raise ValueError(f"width={self.width}: must be even, as the first layers have half of it; add one")
        halvings = len(self.layers) + 1
        if any(side % 2**halvings for side in images.shape[1:3]):
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]} cannot be halved {halvings} times: use a multiple of "
                f"{2**halvings}, or fewer stages"
            )
        norm = partial(BatchNorm, mean, examples, dtype=self.dtype)
        conv = partial(_conv, dtype=self.dtype)
        x = _normalised(images, self.pixel_mean, self.pixel_std)
        for i, width in enumerate((self.width // 2, self.width // 2, self.width)):
            x = conv(width, 3, stride=2 if i == 0 else 1, name=f"conv_{i}")(x)
            x = nn.relu(norm(name=f"norm_{i}")(x))
        x = average_pool(x)
        block = nn.remat(Bottleneck) if self.remat else Bottleneck
        for stage, blocks in enumerate(self.layers):
            for i in range(blocks):
                halve = stage > 0 and i == 0
                x = block(self.width * 2**stage, halve, norm, self.dtype, name=f"stage_{stage}_block_{i}")(x)
        return AttentionPool(self.dimensions, self.heads, name="pool")(x)


class TextTransformer(nn.Module):
    """A causal transformer, read at a text's last token (section 2.4)."""

    vocabulary: int  # tokens are below it
    width: int
    layers: int
    heads: int
    dimensions: int  # of the embedding
    mlp_ratio: float = 4
    activation: str = "quick_gelu"  # "quick_gelu" | "gelu"
    remat: bool = False  # compute each block again in the backward pass instead of keeping it
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # of the transformer's computation

    @nn.compact
    def __call__(self, tokens: Tokens) -> tuple[Float[Array, "B L W"], Embeddings]:
        """Return float32 states of all tokens, behind the last norm, and the embedding of each text.

        NO_TOKEN may stand behind the last token of a text and not elsewhere; the states there say nothing. Raises
        ValueError for texts of another length than the parameters'.
        """
        length, normal = tokens.shape[1], nn.initializers.normal
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=normal(0.02), name="token")
        x = embed(jnp.maximum(tokens, 0))  # as which token NO_TOKEN is read, no token before it can see
        x = x + places(self, length, self.width, 0.01).astype(self.dtype)[None]
        states = of_fields(self)(x, "causal")
        last = jnp.where(tokens != NO_TOKEN, jnp.arange(length)[None, :], 0).max(axis=1)
        read = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        out = nn.Dense(self.dimensions, use_bias=False, kernel_init=normal(self.width**-0.5), name="out")
        return states, out(read)


def _normalised(images: Images, mean: Sequence[float], std: Sequence[float]) -> Images:
    """Images in [-1, 1] by the mean and the deviation of pixels in [0, 1]."""
    channels = images.shape[-1]
    if not {len(mean), len(std)} <= {1, channels}:
        raise ValueError(f"images of {channels} channels, pixel_mean of {len(mean)} and pixel_std of {len(std)}")
    mean, std = (np.asarray(values, np.float32)[None, None, None, :] for values in (mean, std))
    return images * (0.5 / std) + (0.5 - mean) / std


def _conv(features: int, kernel: int, *, stride: int = 1, dtype: DTypeLike, name: str) -> nn.Conv:
    padding = kernel // 2  # on all sides, which "SAME" is not at stride 2
    options = {"use_bias": False, "kernel_init": _UNIFORM, "dtype": dtype, "name": name}
    return nn.Conv(features, (kernel, kernel), stride, padding, **options)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def limited(log_scale: Scalar, mean: Mean = lambda x: x) -> Scalar:
    """The logits' log scale, which is learned from ln(1 / 0.07) on, at most ln(100) (section 2.5).

    Its gradient is cut off only where descent would take it further beyond; `mean` is as that of typing.Moment, so that
    all devices judge by the same gradient.
    """
    return jnp.minimum(log_scale, _LIMIT)


def _limited_forward(log_scale, mean):
    return limited(log_scale, mean), log_scale


def _limited_backward(mean, log_scale, cotangent):
    return (jnp.where((log_scale < _LIMIT) | (mean(cotangent) > 0), cotangent, 0.0),)


limited.defvjp(_limited_forward, _limited_backward)


def contrast(
    images: Embeddings,
    texts: Embeddings,
    all_images: Float[Array, "N D"],
    all_texts: Float[Array, "N D"],
    place: Int[Array, "B"],
    scale: Scalar,
) -> tuple[Float[Array, "B"], Int[Array, "B"]]:
    """Returns the contrastive loss of pairs of images and texts (figure 3), and the text that each image is nearest to.

    Args:
      images, texts: pairs of embeddings of unit length.
      all_images, all_texts: those of all devices, and `place` where among them the pairs are.
      scale: of the logits.

    Returns:
      The mean of both cross entropies, in nats, float32; and the place of the image's likeliest text among all.
    """

    def logits(queries, answers):  # of full precision: on accelerators the scale would show what they round
        return scale * jnp.einsum("bd,nd->bn", queries, answers, precision=lax.Precision.HIGHEST)

    def nats(logits):
        own = jnp.take_along_axis(logits, place[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - own

    images, texts, all_images, all_texts = (x.astype(jnp.float32) for x in (images, texts, all_images, all_texts))
    by_image, by_text = logits(images, all_texts), logits(texts, all_images)
    return (nats(by_image) + nats(by_text)) / 2, by_image.argmax(axis=1)
