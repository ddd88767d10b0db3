"""A transformer over a sequence, as GPT-2's (Radford et al. 2019), and sampling from it with cached keys and values.

Other masks and activations make it CLIP's encoders, DALL-E's decoder and the network of unCLIP's priors. Tokens'
embeddings, those of their places, and the last linear layer are the caller's.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from diffjax.nn.attention import attend
from diffjax.nn.layers import Dropout, LayerNorm, check_dropout, choose
from diffjax.typing import PRNGKeys

# True: row may attend to column; "causal": to itself and those before; "all": to every one
Mask = Bool[Array, "T T"] | Bool[Array, "B T T"] | str
Masks = Mask | Sequence[Mask]  # a sequence has one a layer
Cache = tuple[tuple[Float[Array, "B S W"], Float[Array, "B S W"]], ...]  # keys and values of each layer

ACTIVATIONS = {"gelu": partial(nn.gelu, approximate=False), "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x)}


class Block(nn.Module):
    """Self-attention, then two linear layers with an activation between; each behind a layer norm, on a residual."""

    layers: int  # of the whole network: its residual branches are scaled by their number at first
    heads: int
    mlp_ratio: float
    activation: str
    dropout: float
    attention: str
    initializer: str
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T W"],
        causal: bool,
        mask: Bool[Array, "T S"] | Bool[Array, "B T S"] | None,
        dropout_keys: PRNGKeys | None = None,
        cache: tuple[Float[Array, "B S W"], Float[Array, "B S W"]] | None = None,
        position: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T W"], tuple[Float[Array, "B S W"], Float[Array, "B S W"]]]:
        """Attend among `x`, or with a `cache` to its S positions after `x` has been put at `position` and on.

        A position attends to what `mask` lets it, and if `causal` to none after it.
        Return the output, and the keys and values that were attended to.
        """
        width = x.shape[-1]
        into, inside = (0.02, 0.02) if self.initializer == "gpt2" else (width**-0.5, (2 * width) ** -0.5)
        norm = partial(LayerNorm, 1e-5, dtype=self.dtype)

        def dense(features: int, std: float, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=nn.initializers.normal(std), name=name)

        residual = partial(dense, width, into / math.sqrt(2 * self.layers))

        q, k, v = jnp.split(dense(3 * width, into, "qkv")(norm(name="norm_attention")(x)), 3, axis=-1)
        if cache is not None:
            k, v = (
                lax.dynamic_update_slice(old, new, (0, position, 0)) for old, new in zip(cache, (k, v), strict=True)
            )
        h = residual("out")(attend(q, k, v, self.heads, self.attention, mask, causal=causal))
        x = x + Dropout(self.dropout, name="dropout_attention")(h, dropout_keys)

        h = dense(round(self.mlp_ratio * width), inside, "mlp_in")(norm(name="norm_mlp")(x))
        h = residual("mlp_out")(ACTIVATIONS[self.activation](h))
        return x + Dropout(self.dropout, name="dropout_mlp")(h, dropout_keys), (k, v)


class Transformer(nn.Module):
    """Blocks one after another, then a layer norm."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4  # width of the MLP's hidden layer, in units of `width`, rounded to whole channels
    activation: str = "gelu"  # "gelu" (exact) | "quick_gelu" (CLIP's: x sigmoid(1.702 x))
    dropout: float = 0.0  # of what each branch adds
    remat: bool = False  # compute each block again in the backward pass instead of keeping it
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    initializer: str = "gpt2"  # "gpt2" | "clip": normal weights, GPT-2's deviations or those of CLIP's code
    dtype: DTypeLike = jnp.float32  # of the computation; parameters, statistics, softmax and output are float32

    def setup(self):
        choose("activation", self.activation, tuple(ACTIVATIONS))
        choose("initializer", self.initializer, ("gpt2", "clip"))
        if self.width % self.heads:
            raise ValueError(f"{self.width} channels cannot be split among {self.heads} attention heads")
        check_dropout(self.dropout)
        kind = nn.remat(Block, static_argnums=(2,)) if self.remat else Block  # 2 is `causal`
        block = partial(kind, self.layers, self.heads, self.mlp_ratio, self.activation)
        details = (self.dropout, self.attention, self.initializer, self.dtype)
        self.block = [block(*details) for _ in range(self.layers)]
        self.norm_out = LayerNorm(1e-5, dtype=jnp.float32)

    def __call__(
        self, x: Float[Array, "B T W"], mask: Masks = "causal", dropout_keys: PRNGKeys | None = None
    ) -> Float[Array, "B T W"]:
        """Return float32 features of embedded inputs. `dropout_keys` None: no dropout.

        `mask` tells which positions (columns) each position (row) may attend to, at least one; "causal": itself and
        those before it; "all": every one. A sequence of masks has one for each layer. Raises ValueError for an unknown
        option, for a width that the heads do not divide or the inputs do not have, and for masks that are not as many
        as the layers.
        """
        x, masks = self._prepared(x, mask)
        for block, own in zip(self.block, masks, strict=True):
            named = isinstance(own, str)
            x, _ = block(x, named and own == "causal", None if named else own, dropout_keys)
        return self.norm_out(x)

    def init_cache(self, batch: int, length: int) -> Cache:
        """Keys and values of no position yet, for sequences up to `length`. Needs no parameters."""
        zeros = jnp.zeros((batch, length, self.width), self.dtype)
        return ((zeros, zeros),) * self.layers

    def extend(
        self, x: Float[Array, "B N W"], cache: Cache, position: Int[Array, ""] | int, mask: Masks = "causal"
    ) -> tuple[Float[Array, "B N W"], Cache]:
        """What `__call__` gives for inputs at `position` and on, the cache holding all before; and the cache with them.

        A `mask` is that of the whole sequence, and lets no position attend to a later one: it could not here, so that
        "all" raises ValueError.
        """
        length = cache[0][0].shape[1]
        rows, columns = position + jnp.arange(x.shape[1]), jnp.arange(length)
        causal = (columns[None, :] <= rows[:, None])[None]
        (x, masks), new = self._prepared(x, mask), []
        if any(isinstance(own, str) and own == "all" for own in masks):
            raise ValueError("mask is 'all': with a cache no position can attend to a later one")
        for block, own, old in zip(self.block, masks, cache, strict=True):
            seen = causal
            if not isinstance(own, str):
                own = own.reshape(-1, *own.shape[-2:])
                seen = causal & lax.dynamic_slice_in_dim(own, position, x.shape[1], 1)[:, :, :length]
            x, pair = block(x, False, seen, None, old, position)
            new.append(pair)
        return self.norm_out(x), tuple(new)

    def step(
        self, x: Float[Array, "B W"], cache: Cache, position: Int[Array, ""] | int, mask: Masks = "causal"
    ) -> tuple[Float[Array, "B W"], Cache]:
        """`extend` by one position."""
        y, cache = self.extend(x[:, None], cache, position, mask)
        return y[:, 0], cache

    def _prepared(self, x, mask):
        """The input in the computation's type, and one mask a layer."""
        if x.shape[-1] != self.width:
            raise ValueError(f"inputs have {x.shape[-1]} channels: the transformer's width is {self.width}")
        masks = tuple(mask) if isinstance(mask, (tuple, list)) else (mask,) * self.layers
        if len(masks) != self.layers:
            raise ValueError(f"{len(masks)} masks were given for {self.layers} layers")
        for own in masks:
            if own is None or isinstance(own, str):
                choose("mask", own, ("causal", "all"))
        return x.astype(self.dtype), masks


def of_fields(module: nn.Module) -> Transformer:
    """The submodule "transformer" of a module, by the fields that both have.

    OpenAI's code draws the weights of CLIP's text encoder as this does, and Hugging Face's those of both encoders.
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
) -> Any:
    """Draw `length` tokens after a prefix; return the values that `pick` gave, [B, length, ...] each.

    `pick(keys, output, position)` gives the value at a position, an array or a tree of them, from the output at the
    position before, and its embedded input. Its keys are `keys` with the position folded in. The `prefix` is embedded
    inputs, at least one, that stand at positions 0 to P - 1 and are worked through in parallel. A `mask` is that of
    P + length - 1 or more positions: the last token is no input.
    """
    batch, known, _ = prefix.shape
    cache = model.init_cache(batch, known + length - 1)
    if known > 1:
        _, cache = model.apply({"params": params}, prefix[:, :-1], cache, 0, mask, method="extend")

    def place(carry, position):
        y, cache = model.apply({"params": params}, *carry, position - 1, mask, method="step")
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        value, x = pick(folded, y, position)
        return (x.astype(prefix.dtype), cache), value

    _, values = lax.scan(place, (prefix[:, -1], cache), known + jnp.arange(length))
    return jax.tree.map(lambda v: jnp.moveaxis(v, 1, 0), values)
