"""Transformer over a sequence (GPT-2: Radford et al. 2019), and sampling with cached keys and values.

With other masks and activations it is that of CLIP's encoders, DALL-E's decoder and unCLIP's priors. The caller
provides token embeddings, position embeddings and the last linear layer.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from diffjax.nn.attention import attend
from diffjax.nn.layers import Dropout, check_choice, check_dropout
from diffjax.nn.partitioning import partition
from diffjax.nn.remat import rematerialize
from diffjax.nn.transformer_layers import (
    ACTIVATIONS,
    ValueResidual,
    make_norm,
    mlp_width,
    normalize_heads,
    rotary_angles,
    rotate,
)
from diffjax.typing import PRNGKeys

# True: row may attend to column; "causal": to itself and previous positions; "all": to all positions
Mask = Bool[Array, "T T"] | Bool[Array, "B T T"] | str
Masks = Mask | Sequence[Mask]  # a sequence has one mask per layer
Positions = Float[Array, "T 2"]  # row and column of each token
Cache = tuple[tuple[Float[Array, "B S W"], Float[Array, "B S W"]], ...]  # keys and values per layer


class Block(nn.Module):
    """Pre-norm transformer block: self-attention and an MLP as residual branches. Fields as in `Transformer`.

    The initializer "vit" is that of U-ViT's code: 0.02 for all layers. With `qkv_bias`, queries, keys and values have
    biases.
    """

    layers: int  # layers of the transformer, which scale the initialisation of residual branches
    heads: int
    mlp_ratio: float
    activation: str
    dropout: float
    attention: str
    initializer: str
    epsilon: float
    dtype: DTypeLike
    norm: str = "layer"
    qk_norm: bool = False
    qkv_bias: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T W"],
        causal: bool,
        mask: Bool[Array, "T S"] | Bool[Array, "B T S"] | None,
        dropout_keys: PRNGKeys | None = None,
        angles: Float[Array, "T P"] | None = None,
        first_values: Float[Array, "B T W"] | None = None,
        cache: tuple[Float[Array, "B S W"], Float[Array, "B S W"]] | None = None,
        position: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T W"], Float[Array, "B T W"], tuple[Float[Array, "B S W"], Float[Array, "B S W"]]]:
        """Computes the block's output.

        Args:
          x: inputs [B, T, W].
          causal: whether positions do not attend to later ones.
          mask: True where a row may attend to a column; None: everywhere.
          dropout_keys: one key per example; None: no dropout.
          angles: angles of rotary position embeddings, one per pair of a head's channels; None: no rotation.
          first_values: values that the first block computes for `x`, for a value residual; None: none.
          cache: keys and values of S positions; those of `x` replace the ones from `position`, and `x` attends to all.
          position: index of the first input in the cache.

        Returns:
          Outputs [B, T, W], the values of `x`, and the keys and values that were attended to.
        """
        width = x.shape[-1]
        into, inside = (width**-0.5, (2 * width) ** -0.5) if self.initializer == "clip" else (0.02, 0.02)
        norm = partial(make_norm, self.norm, self.epsilon, self.dtype)

        def head_norm(x: Array, name: str) -> Array:
            return normalize_heads(x, self.heads, self.dtype, name) if self.qk_norm else x

        def dense(features: int, std: float, name: str, bias: bool = True) -> nn.Dense:
            return nn.Dense(features, bias, self.dtype, kernel_init=nn.initializers.normal(std), name=name)

        residual = partial(dense, width, into if self.initializer == "vit" else into / math.sqrt(2 * self.layers))

        qkv = dense(3 * width, into, "qkv", self.qkv_bias)(norm("norm_attention")(x))
        q, k, v = jnp.split(qkv, 3, axis=-1)
        q, k = rotate(head_norm(q, "norm_q"), angles), rotate(head_norm(k, "norm_k"), angles)
        if first_values is not None:
            v = ValueResidual(name="value_residual")(v, first_values)
        values = v
        if cache is not None:
            k, v = (
                lax.dynamic_update_slice(old, new, (0, position, 0)) for old, new in zip(cache, (k, v), strict=True)
            )
        h = residual("out")(attend(q, k, v, self.heads, self.attention, mask, causal=causal))
        x = x + Dropout(self.dropout, name="dropout_attention")(h, dropout_keys)

        hidden = mlp_width(width, self.mlp_ratio, self.activation)
        h = dense(hidden, inside, "mlp_in")(norm("norm_mlp")(x))
        h = residual("mlp_out")(ACTIVATIONS[self.activation](h))
        return x + Dropout(self.dropout, name="dropout_mlp")(h, dropout_keys), values, (k, v)


class Transformer(nn.Module):
    """Transformer blocks followed by a norm."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4  # hidden width of the MLP in units of `width`, rounded to an integer
    # "gelu" (exact) | "gelu_tanh" | "quick_gelu" (CLIP's: x sigmoid(1.702 x)) | "swiglu" (see `mlp_width`)
    activation: str = "gelu"
    dropout: float = 0.0  # rate, on the output of each residual branch
    remat: str | bool = "none"  # "none" | "dots" | "blocks": values kept for the backward pass, see `rematerialize`
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    initializer: str = "gpt2"  # "gpt2" | "clip": standard deviations of GPT-2 or of CLIP's code
    epsilon: float = 1e-5  # added to the variance, or mean square, in norms
    dtype: DTypeLike = jnp.float32  # compute dtype; parameters, norm statistics, softmax and output are float32
    norm: str = "layer"  # "layer" | "rms"
    # rotate queries and keys, besides any position embeddings of the inputs: False | True (by the index of their token)
    # | "grid" (by `positions`)
    rope: str | bool = False
    qk_norm: bool = False  # RMS norm of queries and keys, per head
    value_residual: bool = False  # mix the values of each block with those of the first one

    def setup(self):
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        check_choice("initializer", self.initializer, ("gpt2", "clip"))
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads}: must divide width={self.width}")
        check_choice("rope", str(self.rope), ("False", "True", "grid"))
        check_dropout(self.dropout)
        block = rematerialize(Block, self.remat, static_argnums=(2,))  # 2 is `causal`
        shape = (self.layers, self.heads, self.mlp_ratio)
        options = (self.activation, self.dropout, self.attention, self.initializer, self.epsilon, self.dtype)
        self.block = [block(*shape, *options, self.norm, self.qk_norm) for _ in range(self.layers)]
        self.norm_out = make_norm(self.norm, self.epsilon, jnp.float32)

    def __call__(
        self,
        x: Float[Array, "B T W"],
        mask: Masks = "causal",
        dropout_keys: PRNGKeys | None = None,
        positions: Positions | None = None,
    ) -> Float[Array, "B T W"]:
        """Computes features of embedded inputs.

        Args:
          x: embedded inputs [B, T, W].
          mask: True where a position (row) may attend to a position (column), at least one per row; "causal": to itself
            and previous positions; "all": to all positions. A sequence has one mask per layer.
          dropout_keys: one key per example; None: no dropout.
          positions: row and column of T tokens at least, for `rope` "grid"; ignored otherwise.

        Returns:
          Outputs of the final norm, float32 [B, T, W].

        Raises:
          ValueError: an unknown option, `heads` does not divide `width`, inputs of another width, another number of
            masks than layers, or `rope` "grid" without `positions`.
        """
        x, masks = self._prepare(x, mask)
        angles, first = self._angles(positions, 0, x.shape[1]), None
        for block, layer_mask in zip(self.block, masks, strict=True):
            causal = isinstance(layer_mask, str) and layer_mask == "causal"
            array = None if isinstance(layer_mask, str) else layer_mask
            x = partition(x, "batch", "tokens", None)
            x, values, _ = block(x, causal, array, dropout_keys, angles, first)
            first = values if self.value_residual and first is None else first
        return self.norm_out(x)

    def init_cache(self, batch: int, length: int) -> Cache:
        """Returns an empty cache for sequences of up to `length` positions; requires no parameters."""
        zeros = jnp.zeros((batch, length, self.width), self.dtype)
        return ((zeros, zeros),) * self.layers

    def extend(
        self,
        x: Float[Array, "B N W"],
        cache: Cache,
        position: Int[Array, ""] | int,
        mask: Masks = "causal",
        positions: Positions | None = None,
    ) -> tuple[Float[Array, "B N W"], Cache]:
        """Computes features of the inputs from `position` on, given a cache of all previous positions.

        Args:
          x: embedded inputs [B, N, W].
          cache: keys and values of the previous positions.
          position: index of the first input.
          mask: mask of the whole sequence, without attention to later positions.
          positions: those of the whole sequence, see `__call__`.

        Returns:
          The features that `__call__` computes for these inputs, float32 [B, N, W], and the extended cache.

        Raises:
          ValueError: `mask` is "all", or as `__call__`.
        """
        length = cache[0][0].shape[1]
        rows, columns = position + jnp.arange(x.shape[1]), jnp.arange(length)
        causal = (columns[None, :] <= rows[:, None])[None]
        (x, masks), extended = self._prepare(x, mask), []
        angles, first = self._angles(positions, position, x.shape[1]), None
        if any(isinstance(layer_mask, str) and layer_mask == "all" for layer_mask in masks):
            raise ValueError("mask='all': a cache does not allow attention to later positions; use 'causal'")
        for block, layer_mask, keys_and_values in zip(self.block, masks, cache, strict=True):
            visible = causal
            if not isinstance(layer_mask, str):
                layer_mask = layer_mask.reshape(-1, *layer_mask.shape[-2:])
                visible = causal & lax.dynamic_slice_in_dim(layer_mask, position, x.shape[1], 1)[:, :, :length]
            x, values, keys_and_values = block(x, False, visible, None, angles, first, keys_and_values, position)
            first = values if self.value_residual and first is None else first
            extended.append(keys_and_values)
        return self.norm_out(x), tuple(extended)

    def step(
        self,
        x: Float[Array, "B W"],
        cache: Cache,
        position: Int[Array, ""] | int,
        mask: Masks = "causal",
        positions: Positions | None = None,
    ) -> tuple[Float[Array, "B W"], Cache]:
        """Computes the features of one position, as `extend`."""
        y, cache = self.extend(x[:, None], cache, position, mask, positions)
        return y[:, 0], cache

    def _angles(
        self, positions: Positions | None, start: Int[Array, ""] | int, count: int
    ) -> Float[Array, "count P"] | None:
        """Returns the angles of rotary position embeddings of `count` tokens from `start` on; None without them."""
        if not self.rope:
            return None
        if self.rope != "grid":
            places = (start + jnp.arange(count))[:, None]
        elif positions is None:
            raise ValueError("rope='grid': requires tokens of images; use True, for the index of each token")
        else:
            places = lax.dynamic_slice_in_dim(positions, start, count)
        return rotary_angles(places, self.width // self.heads)

    def _prepare(self, x: Array, mask: Masks) -> tuple[Array, tuple[Mask, ...]]:
        """Returns the input in the compute dtype, and one mask per layer."""
        if x.shape[-1] != self.width:
            raise ValueError(f"width={self.width}: inputs have {x.shape[-1]} channels")
        masks = tuple(mask) if isinstance(mask, (tuple, list)) else (cast(Mask, mask),) * self.layers
        if len(masks) != self.layers:
            raise ValueError(f"mask: {len(masks)} masks for layers={self.layers}; give one per layer")
        for layer_mask in masks:
            if layer_mask is None or isinstance(layer_mask, str):
                check_choice("mask", str(layer_mask), ("causal", "all"))
        return x.astype(self.dtype), masks


def transformer_from_fields(module: nn.Module) -> Transformer:
    """Returns the submodule "transformer" of a module, built from the fields that it has in common with Transformer.

    Weights are initialised as in OpenAI's code for CLIP's text encoder and in Hugging Face's for both encoders.
    """
    names = {field.name for field in dataclasses.fields(Transformer)} & {f.name for f in dataclasses.fields(module)}
    fields = {name: getattr(module, name) for name in names - {"parent", "name"}}
    return Transformer(**fields, initializer="clip", name="transformer")


def generate(
    model: Transformer,
    params: Any,
    pick: Callable[[PRNGKeys, Float[Array, "B W"], Int[Array, ""]], tuple[Any, Float[Array, "B W"]]],
    keys: PRNGKeys,
    prefix: Float[Array, "B P W"],
    length: int,
    mask: Masks = "causal",
    positions: Positions | None = None,
) -> Any:
    """Samples `length` tokens after a prefix, with cached keys and values.

    Args:
      model: the transformer.
      params: parameters of the transformer.
      pick: (keys, output, position) -> (value, input): the value at a position, an array or a tree [B, ...], from the
        output at the previous position, and its embedding [B, W], the next input.
      keys: one key per example; `pick` gets them with the position folded in.
      prefix: embedded inputs [B, P, W] at positions 0 to P - 1, at least one.
      length: number of tokens to sample.
      mask: see `Transformer.__call__`, for at least P + length - 1 positions: the last token is not an input.
      positions: see `Transformer.__call__`, of as many tokens.

    Returns:
      The values from `pick`, [B, length, ...].
    """
    batch, known, _ = prefix.shape
    cache = model.init_cache(batch, known + length - 1)
    if known > 1:
        _, cache = model.apply({"params": params}, prefix[:, :-1], cache, 0, mask, positions, method="extend")

    def place(carry, position):
        y, cache = model.apply({"params": params}, *carry, position - 1, mask, positions, method="step")
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        value, x = pick(folded, y, position)
        return (x.astype(prefix.dtype), cache), value

    _, values = lax.scan(place, (prefix[:, -1], cache), known + jnp.arange(length))
    return jax.tree.map(lambda v: jnp.moveaxis(v, 1, 0), values)
