"""Attention over the positions of a feature map.

DDPM's, ADM's and GLIDE's block; latent diffusion's transformer; the pooling of CLIP and of ADM's classifier.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from diffjax.nn.layers import Dense, GroupNorm, LayerNorm, choose


def implementation(name: str, dtype: DTypeLike, head_dim: int) -> str:
    """Which of jax's attentions computes "auto" | "xla" | "cudnn".

    "auto" is cuDNN's where it runs on every GPU: half precision, a head of a multiple of 8 and at most 128 channels.
    """
    if choose("attention", name, ("auto", "xla", "cudnn")) != "auto":
        return name
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    fits = half and head_dim % 8 == 0 and head_dim <= 128
    return "cudnn" if fits and jax.default_backend() == "gpu" else "xla"


def attend(
    q: Float[Array, "B T C"],
    k: Float[Array, "B S C"],
    v: Float[Array, "B S C"],
    heads: int,
    attention: str,
    mask: Bool[Array, "T S"] | Bool[Array, "B T S"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "B T C"]:
    """softmax(q k / sqrt(C / heads)) v for each of `heads` slices of the channels; the softmax is float32.

    A query (row) attends to the keys (columns) where a `mask` is True; `causal`: to those up to its own position.
    """
    if q.shape[-1] % heads:
        raise ValueError(f"{q.shape[-1]} channels cannot be split among {heads} attention heads")
    # "auto" is XLA's where a mask is given: cuDNN takes one as a bias, of which it computes a gradient
    name = "xla" if mask is not None and attention == "auto" else attention
    name = implementation(name, q.dtype, q.shape[-1] // heads)
    split = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    mask = mask if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])
    y = jax.nn.dot_product_attention(*split, mask=mask, is_causal=causal, implementation=name)
    return y.reshape(q.shape)


def places(module: nn.Module, count: int, width: int, std: float) -> Float[Array, "count width"]:
    """The parameter "place" of a module: a learned embedding for each of `count` positions, float32.

    Raises ValueError where the parameters have another number of them.
    """
    try:
        return module.param("place", nn.initializers.normal(std), (count, width), jnp.float32)
    except ScopeParamShapeError as error:
        found = module.get_variable("params", "place").shape
        raise ValueError(f"places {found} are learned, and the inputs ask for {(count, width)}") from error


class AttentionBlock(nn.Module):
    """x + attention(norm(x)) over positions (DDPM, appendix B; ADM, section 3).

    Keys and values of a `context` (GLIDE, section 3.1; unCLIP, section 2.1) are put before those of the positions.
    """

    heads: int = 1
    groups: int = 32
    epsilon: float = 1e-6
    residual_scale: float = 1.0
    initializer: str = "ddpm"
    attention: str = "auto"
    dtype: DTypeLike = jnp.float32
    min_channels: int = 0  # of a group of the norm: see layers.num_groups

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], context: Float[Array, "B L D"] | None = None
    ) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, self.epsilon, self.dtype, self.min_channels, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        qkv = Dense(3 * channels, self.initializer, fused=3, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        if context is not None:
            kv = Dense(2 * channels, self.initializer, fused=2, dtype=self.dtype, name="context_kv")(context)
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(jnp.split(kv, 2, axis=-1), (k, v), strict=True))
        h = Dense(channels, "zero", dtype=self.dtype, name="out")(attend(q, k, v, self.heads, self.attention))
        return (x + h.reshape(x.shape)) * self.residual_scale


class AttentionPool(nn.Module):
    """A feature map as one vector, by attention from its mean (CLIP, section 2.4; ADM's classifier, section 4).

    The mean is put before the positions as one more token, and every token is given a learned embedding of its place.
    What the mean then gathers from all of them goes through a linear layer. The computation is float32.
    """

    features: int
    heads: int = 1
    initializer: str = "torch"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        batch, height, width, channels = x.shape
        dense = partial(Dense, initializer=self.initializer)
        x = x.astype(jnp.float32).reshape(batch, height * width, channels)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        x = x + places(self, x.shape[1], channels, channels**-0.5)[None, :, :]
        q = dense(channels, name="q")(x[:, :1])  # no other token's output is asked for
        k, v = dense(channels, name="k")(x), dense(channels, name="v")(x)
        return dense(self.features, name="out")(attend(q, k, v, self.heads, "xla")[:, 0])


class CrossAttention(nn.Module):
    """Attention of x to a context; only the output has a bias."""

    heads: int
    initializer: str
    attention: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], context: Float[Array, "B S D"]) -> Float[Array, "B T C"]:
        dense = partial(Dense, x.shape[-1], self.initializer, dtype=self.dtype)
        q = dense(bias=False, name="q")(x)
        k = dense(bias=False, name="k")(context)
        v = dense(bias=False, name="v")(context)
        return dense(name="out")(attend(q, k, v, self.heads, self.attention))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context (without one: to itself), GEGLU; each behind a layer norm."""

    heads: int
    initializer: str
    attention: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], context: Float[Array, "B L D"] | None) -> Float[Array, "B T C"]:
        channels = x.shape[-1]
        norm = partial(LayerNorm, 1e-5, dtype=self.dtype)
        dense = partial(Dense, initializer=self.initializer, dtype=self.dtype)
        attention = partial(CrossAttention, self.heads, self.initializer, self.attention, self.dtype)

        h = norm(name="norm_self")(x)
        x = x + attention(name="self")(h, h)
        h = norm(name="norm_cross")(x)
        x = x + attention(name="cross")(h, h if context is None else context)
        h = dense(8 * channels, name="mlp_in")(norm(name="norm_mlp")(x))
        h, gate = jnp.split(h, 2, axis=-1)
        return x + dense(channels, name="mlp_out")(h * nn.gelu(gate, approximate=False))


class SpatialTransformer(nn.Module):
    """Latent diffusion's transformer over positions, `depth` blocks deep (Rombach et al. 2022, appendix E.2.1).

    The projections in and out are the published 1x1 convolutions (Stable Diffusion 1) and linear layers (2): one map.
    """

    depth: int = 1
    heads: int = 1
    groups: int = 32
    initializer: str = "torch"
    attention: str = "auto"
    dtype: DTypeLike = jnp.float32
    min_channels: int = 0  # of a group of the norm: see layers.num_groups

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], context: Float[Array, "B L D"] | None = None
    ) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        norm = GroupNorm(self.groups, 1e-6, self.dtype, self.min_channels, name="norm")  # 1e-6 for every network
        h = norm(x)
        h = h.reshape(batch, height * width, channels)
        h = Dense(channels, self.initializer, dtype=self.dtype, name="in")(h)
        for i in range(self.depth):
            block = TransformerBlock(self.heads, self.initializer, self.attention, self.dtype, name=f"block_{i}")
            h = block(h, context)
        h = Dense(channels, "zero", dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)
