"""Attention over the positions of a feature map.

The attention block of DDPM, ADM and GLIDE; the spatial transformer of latent diffusion; the attention pool of CLIP and
of ADM's classifier.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from diffjax.nn.layers import Dense, GroupNorm, LayerNorm, check_choice
from diffjax.nn.partitioning import partition

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite, so that a row without any True has uniform weights


def implementation(name: str, dtype: DTypeLike, head_dim: int) -> Literal["xla", "cudnn"]:
    """Returns the implementation of `jax.nn.dot_product_attention` to use, "xla" or "cudnn".

    Args:
      name: "auto" | "xla" | "cudnn". "auto" chooses cuDNN where every supported GPU can run it: on a GPU, in half
        precision, with a head size that is a multiple of 8 and at most 128.
      dtype: dtype of queries, keys and values.
      head_dim: channels per head.

    Raises:
      ValueError: an unknown name.
    """
    check_choice("attention", name, ("auto", "xla", "cudnn"))
    if name == "xla" or name == "cudnn":
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
    """Returns multi-head attention, softmax(q k / sqrt(C / heads)) v per head, with a float32 softmax.

    Args:
      q: queries [B, T, C]; each head has C / heads consecutive channels.
      k: keys [B, S, C].
      v: values [B, S, C].
      heads: number of heads; must divide C.
      attention: implementation, "auto" | "xla" | "cudnn".
      mask: True where a query (row) may attend to a key (column); None: everywhere.
      causal: whether a query may attend only to keys up to its own position.

    Returns:
      Attention outputs [B, T, C], in the dtype of `q`.

    Raises:
      ValueError: `heads` does not divide C, or an unknown implementation.
    """
    if q.shape[-1] % heads:
        raise ValueError(f"heads={heads}: must divide the {q.shape[-1]} channels of attention")
    # With a mask, "auto" is XLA: cuDNN takes a mask as a bias and computes the gradient of that bias.
    name = "xla" if mask is not None and attention == "auto" else attention
    backend = implementation(name, q.dtype, q.shape[-1] // heads)
    by_head = [partition(x.reshape(*x.shape[:2], heads, -1), "batch", None, "heads", None) for x in (q, k, v)]
    mask = mask if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])
    if backend == "xla" and q.dtype == jnp.float32:
        y = _float32_attention(*by_head, mask=mask, causal=causal)
    else:
        y = jax.nn.dot_product_attention(*by_head, mask=mask, is_causal=causal, implementation=backend)
    return y.reshape(q.shape)


def _float32_attention(
    q: Float[Array, "B T N D"],
    k: Float[Array, "B S N D"],
    v: Float[Array, "B S N D"],
    mask: Bool[Array, "#B 1 T S"] | None,
    causal: bool,
) -> Float[Array, "B T N D"]:
    """Returns `jax.nn.dot_product_attention`, by products of contiguous matrices per head, which CPUs prefer."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = jnp.einsum("bntd,bnsd->bnts", q, k) * q.shape[-1] ** -0.5
    if causal:
        earlier = jnp.tri(*scores.shape[-2:], dtype=bool)[None, None]
        mask = earlier if mask is None else mask & earlier
    if mask is not None:
        scores = jnp.where(mask, scores, _MASKED)
    return jnp.einsum("bnts,bnsd->bntd", jax.nn.softmax(scores), v).swapaxes(1, 2)


def position_embedding(module: nn.Module, count: int, width: int, std: float) -> Float[Array, "count width"]:
    """Returns the parameter "place" of a module: one learned embedding per position, float32.

    Args:
      module: module that has the parameter.
      count: number of positions.
      width: values per embedding.
      std: standard deviation at initialisation.

    Raises:
      ValueError: the parameter has another shape, because the network was initialised for another number of positions.
    """
    try:
        return module.param("place", nn.initializers.normal(std), (count, width), jnp.float32)
    except ScopeParamShapeError as error:
        learned = module.get_variable("params", "place").shape
        raise ValueError(
            f"position embeddings {learned} were learned, but the inputs require {(count, width)}; "
            "use inputs of the length of training"
        ) from error


class AttentionBlock(nn.Module):
    """Residual self-attention over positions: (x + attention(norm(x))) * residual_scale.

    With a `context`, its keys and values are concatenated before those of the positions.

    Reference: DDPM (Ho et al. 2020), appendix B; ADM (Dhariwal & Nichol 2021), section 3; with a context GLIDE (Nichol
    et al. 2021), section 4.1, and unCLIP (Ramesh et al. 2022), section 2.1.
    """

    heads: int = 1
    groups: int = 32
    epsilon: float = 1e-6
    residual_scale: float = 1.0
    initializer: str = "ddpm"
    attention: str = "auto"
    dtype: DTypeLike = jnp.float32
    min_channels: int = 0  # minimum channels per group of the norm (layers.num_groups)
    identity_map: bool = False  # each position attends to itself alone: perturbed-attention guidance

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        context: Float[Array, "B L D"] | None = None,
        context_mask: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Returns features of the shape of `x`.

        Args:
          x: features [B, H, W, C].
          context: sequence [B, L, D] to attend to as well.
          context_mask: True where the context is attended to; None: everywhere.
        """
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, self.epsilon, self.dtype, self.min_channels, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        qkv = Dense(3 * channels, self.initializer, fused=3, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        mask = None
        if context is not None:
            kv = Dense(2 * channels, self.initializer, fused=2, dtype=self.dtype, name="context_kv")(context)
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(jnp.split(kv, 2, axis=-1), (k, v), strict=True))
            if context_mask is not None:
                mask = jnp.pad(context_mask, ((0, 0), (0, height * width)), constant_values=True)
                mask = jnp.broadcast_to(mask[:, None, :], (batch, height * width, mask.shape[-1]))
        h = v[:, -height * width :] if self.identity_map else attend(q, k, v, self.heads, self.attention, mask)
        h = Dense(channels, "zero", dtype=self.dtype, name="out")(h)
        return (x + h.reshape(x.shape)) * self.residual_scale


class AttentionPool(nn.Module):
    """Pools a feature map to one vector by attention from its mean.

    The mean over positions becomes an additional first token, and all tokens get a learned position embedding. The
    output of that first token goes through a linear layer. The computation is float32.

    Reference: CLIP (Radford et al. 2021), section 2.4; ADM's classifier (Dhariwal & Nichol 2021), section 4.
    """

    features: int  # values of the output
    heads: int = 1
    initializer: str = "torch"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """Returns pooled features, float32 [B, features]."""
        batch, height, width, channels = x.shape
        dense = partial(Dense, initializer=self.initializer)
        x = x.astype(jnp.float32).reshape(batch, height * width, channels)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        x = x + position_embedding(self, x.shape[1], channels, channels**-0.5)[None, :, :]
        q = dense(channels, name="q")(x[:, :1])  # only the first token's output is used
        k, v = dense(channels, name="k")(x), dense(channels, name="v")(x)
        return dense(self.features, name="out")(attend(q, k, v, self.heads, "xla")[:, 0])


class CrossAttention(nn.Module):
    """Cross-attention from x to a context; only the output projection has a bias."""

    heads: int
    initializer: str
    attention: str
    dtype: DTypeLike
    identity_map: bool = False  # each position attends to itself alone; the context is then `x`

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], context: Float[Array, "B S D"]) -> Float[Array, "B T C"]:
        dense = partial(Dense, x.shape[-1], self.initializer, dtype=self.dtype)
        q = dense(bias=False, name="q")(x)
        k = dense(bias=False, name="k")(context)
        v = dense(bias=False, name="v")(context)
        return dense(name="out")(v if self.identity_map else attend(q, k, v, self.heads, self.attention))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, GEGLU, each as a residual branch that begins with a layer norm.

    Without a context, the cross-attention attends to `x`.

    Reference: Rombach et al. 2022, appendix E.2.1.
    """

    heads: int
    initializer: str
    attention: str
    dtype: DTypeLike
    identity_map: bool = False  # of the self-attention: see AttentionBlock

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], context: Float[Array, "B L D"] | None) -> Float[Array, "B T C"]:
        channels = x.shape[-1]
        norm = partial(LayerNorm, 1e-5, dtype=self.dtype)
        dense = partial(Dense, initializer=self.initializer, dtype=self.dtype)
        attention = partial(CrossAttention, self.heads, self.initializer, self.attention, self.dtype)

        h = norm(name="norm_self")(x)
        x = x + attention(self.identity_map, name="self")(h, h)
        h = norm(name="norm_cross")(x)
        x = x + attention(name="cross")(h, h if context is None else context)
        h = dense(8 * channels, name="mlp_in")(norm(name="norm_mlp")(x))
        h, gate = jnp.split(h, 2, axis=-1)
        return x + dense(channels, name="mlp_out")(h * nn.gelu(gate, approximate=False))


class SpatialTransformer(nn.Module):
    """Residual transformer over the positions of a feature map, used by latent diffusion.

    The input and output projections are 1x1 convolutions in Stable Diffusion 1 and linear layers in 2, which compute
    the same map.

    Reference: Rombach et al. 2022, appendix E.2.1.
    """

    depth: int = 1  # number of transformer blocks
    heads: int = 1
    groups: int = 32
    initializer: str = "torch"
    attention: str = "auto"
    dtype: DTypeLike = jnp.float32
    min_channels: int = 0  # minimum channels per group of the norm (layers.num_groups)
    identity_map: bool = False  # of the self-attention: see AttentionBlock

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], context: Float[Array, "B L D"] | None = None
    ) -> Float[Array, "B H W C"]:
        """Returns features of the shape of `x`; `context` is a sequence [B, L, D] to attend to."""
        batch, height, width, channels = x.shape
        norm = GroupNorm(self.groups, 1e-6, self.dtype, self.min_channels, name="norm")  # 1e-6 in every network
        h = norm(x)
        h = h.reshape(batch, height * width, channels)
        h = Dense(channels, self.initializer, dtype=self.dtype, name="in")(h)
        for i in range(self.depth):
            options = self.heads, self.initializer, self.attention, self.dtype, self.identity_map
            h = TransformerBlock(*options, name=f"block_{i}")(h, context)
        h = Dense(channels, "zero", dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)
