"""p(codes | condition), code after code: a gated PixelCNN over one level, or a causal transformer over all of them."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from diffjax.errors import UserError
from diffjax.models.autoregressive.prefix import Caption, Prefix
from diffjax.models.networks import dtype_of, make
from diffjax.nn import masks, pixelcnn, transformer
from diffjax.nn.layers import Dense
from diffjax.typing import Codec, Codes, PRNGKey, PRNGKeys

Params = dict[str, Any]
# Draws a code of each example from logits. Of twice as many logits as keys the second half leads away from what the
# first half leads to, and both halves are given the same codes.
Pick = Callable[[PRNGKeys, Float[Array, "B K"]], Int[Array, "B"]]


@dataclasses.dataclass(frozen=True)
class CodeModel(abc.ABC):
    """A model of the codes of a codec.

    Attributes:
      network: sees the codes so far.
      condition: what it is told first.
      grids: h, w, n of each level, the coarsest first.
      size: values of a code.
    """

    network: nn.Module
    condition: Prefix
    grids: tuple[tuple[int, int, int], ...]
    size: int

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config, codec: Codec, condition: Prefix) -> "CodeModel":
        """Of `config.model`. Raises UserError."""

    @abc.abstractmethod
    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters, which find all codes equally likely."""

    @abc.abstractmethod
    def nll(
        self, params: Params, codes: Codes, values: Array, dropout_keys: PRNGKeys | None
    ) -> Mapping[str, Float[Array, "B _"]]:
        """-log p in nats of each of the "codes" in the order they are drawn in; and of the "text", where it has one."""

    @abc.abstractmethod
    def draw(self, params: Params, keys: PRNGKeys, values: Array, pick: Pick, known: Int[Array, "B K"]) -> Codes:
        """Codes drawn one after another by `pick`, the first K of them `known`."""


class PixelCNNPrior(CodeModel):
    """A gated PixelCNN over one level; the condition, one vector, shifts every gate."""

    @classmethod
    def from_config(cls, config, codec, condition):
        if len(codec.grids) > 1 or codec.grids[0][2] > 1:
            raise UserError(
                "model.architecture=pixelcnn models one level with one code a position, and this codec has "
                f"{len(codec.grids)} levels of {codec.grids[0][2]}: choose transformer"
            )
        if condition.length > 1:
            raise UserError("model.architecture=pixelcnn reads no captions word by word: choose transformer, or clip")
        network = make(pixelcnn.PixelCNN, _fields(config), "model", outputs=codec.vocabulary, dtype=dtype_of(config))
        return cls(network, condition, codec.grids, codec.vocabulary)

    def init(self, key):
        network_key, embed_key, condition_key = jax.random.split(key, 3)
        height, width, _ = self.grids[0]
        features = self.network.features
        x, shift = jnp.zeros((1, height, width, features)), jnp.zeros((1, 1, 1, features))
        return {
            "network": self.network.init(network_key, x, shift)["params"],
            "embedding": jax.random.normal(embed_key, (self.size, features)),
            "condition": self.condition.init(condition_key, features, 1.0),
        }

    def _shift(self, params, values):
        return self.condition.embed(params["condition"], values)[:, None]

    def nll(self, params, codes, values, dropout_keys):
        (code,) = (code[..., 0] for code in codes)
        x = params["embedding"][code]
        logits = self.network.apply({"params": params["network"]}, x, self._shift(params, values), dropout_keys)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, code)
        return {"codes": nats.reshape(len(nats), -1)}

    def draw(self, params, keys, values, pick, known):
        height, width, _ = self.grids[0]
        known = jnp.pad(known, ((0, 0), (0, height * width - (count := known.shape[1]))))

        def choose(keys, logits, place):
            position = place[0] * width + place[1]
            code = jnp.where(position < count, known[:, position], pick(keys, logits))
            return code, params["embedding"][code]

        shift = self._shift(params, values)
        drawn = pixelcnn.generate(self.network, params["network"], choose, keys, shift, height, width)
        return (drawn[..., None],)


@dataclasses.dataclass(frozen=True)
class TransformerPrior(CodeModel):
    """A causal transformer over the condition and then the codes of all levels, in one sequence.

    With a caption it is DALL-E's (Ramesh et al. 2021, section 2.2): the caption is predicted too, codes stand at rows
    and columns that have an embedding each, and every layer has a sparse mask of its own. Text and codes have a head
    each, which is one head whose logits are masked by the kind of a position: no code can be a word.
    """

    masks: tuple[str, ...] = ()  # of nn/masks.py, one a layer; (): all see all before
    kernel: int = 11  # of the masks that are convolutions

    @classmethod
    def from_config(cls, config, codec, condition):
        model = config.model
        network = make(transformer.Transformer, _fields(config, *_MASKS), "model", dtype=dtype_of(config))
        cycle = tuple(model.get("masks", ())) or ("full",)
        names = [cycle[layer % len(cycle)] for layer in range(network.layers)]
        names[-1] = model.get("last_mask", "") or names[-1]
        kernel = model.get("mask_kernel", 11)
        one = len(codec.grids) == 1 and codec.grids[0][2] == 1
        if set(names) != {"full"} and not one:
            raise UserError("model.masks are of one level with one code a position: leave them () for this codec")
        try:
            for name in names:
                masks.sparse(name, prefix=1, height=1, width=1, kernel=kernel)
        except ValueError as error:
            raise UserError(f"model.masks, model.last_mask, model.mask_kernel={kernel}: {error}") from error
        sparse = tuple(names) if set(names) != {"full"} else ()
        return cls(network, condition, codec.grids, codec.vocabulary, sparse, kernel)

    @property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(math.prod(grid) for grid in self.grids)

    @property
    def _mask(self):
        """Of the inputs: the last code is none."""
        if not self.masks:
            return "causal"
        height, width, _ = self.grids[0]
        whole = {
            name: masks.sparse(name, prefix=self.condition.length, height=height, width=width, kernel=self.kernel)
            for name in set(self.masks)
        }
        return tuple(jnp.asarray(whole[name][:-1, :-1]) for name in self.masks)

    def init(self, key):
        keys, width = jax.random.split(key, 6), self.network.width

        def table(key, *shape):
            return 0.02 * jax.random.normal(key, (*shape, width))  # as GPT-2's

        def axes(key, grid):
            named = zip(("row", "column", "part"), grid, jax.random.split(key, 3), strict=True)
            return {name: table(k, side) for name, side, k in named}

        x = jnp.zeros((1, self.condition.length + sum(self._lengths) - 1, width))
        params = {
            "network": self.network.init(keys[0], x)["params"],
            "embedding": table(keys[1], len(self.grids), self.size),
            "place": list(map(axes, jax.random.split(keys[2], len(self.grids)), self.grids)),
            "head": self._head.init(keys[3], x)["params"],
            "condition": self.condition.init(keys[4], width, 0.02),
        }
        if isinstance(self.condition, Caption):
            params["text_head"] = self._text_head.init(keys[5], x)["params"]
        return params

    @property
    def _head(self) -> Dense:
        return Dense(self.size, "zero")

    @property
    def _text_head(self) -> Dense:
        return Dense(self.condition.size, "zero")

    def _places(self, params) -> Float[Array, "N W"]:
        """What stands for the place of each code."""
        found = [
            p["row"][:, None, None] + p["column"][None, :, None] + p["part"][None, None, :] for p in params["place"]
        ]
        return jnp.concatenate([place.reshape(-1, place.shape[-1]) for place in found])

    def _embedded(self, params, flat: Int[Array, "B K"]) -> Float[Array, "B K W"]:
        """The first K codes."""
        level = np.repeat(np.arange(len(self.grids)), self._lengths)[: flat.shape[1]]
        return params["embedding"][level[None, :], flat] + self._places(params)[None, : flat.shape[1]]

    def _logits(self, params, h):
        return self._head.apply({"params": params["head"]}, h)

    def nll(self, params, codes, values, dropout_keys):
        flat = jnp.concatenate([code.reshape(len(code), -1) for code in codes], axis=1)
        prefix, length = self.condition.embed(params["condition"], values), self.condition.length
        x = jnp.concatenate([prefix, self._embedded(params, flat[:, :-1])], axis=1)
        h = self.network.apply({"params": params["network"]}, x, self._mask, dropout_keys)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        nats = {"codes": cross_entropy(self._logits(params, h[:, length - 1 :]), flat)}
        if isinstance(self.condition, Caption):
            logits = self._text_head.apply({"params": params["text_head"]}, h[:, : length - 1])
            nats["text"] = cross_entropy(logits, self.condition.targets(values)[:, 1:])
        return nats

    def draw(self, params, keys, values, pick, known):
        level = jnp.asarray(np.repeat(np.arange(len(self.grids)), self._lengths))
        places, first = self._places(params), self.condition.length

        def choose(keys, h, position):
            code, place = pick(keys, self._logits(params, h)), position - first
            return code, params["embedding"][level[place], code] + places[place][None, :]

        prefix = self.condition.embed(params["condition"], values)
        prefix = jnp.concatenate([prefix, self._embedded(params, known)], axis=1)
        left = sum(self._lengths) - known.shape[1]
        network = functools.partial(transformer.generate, self.network, params["network"], choose, keys)
        drawn = jnp.concatenate([known, network(prefix, left, self._mask)], axis=1)
        parts = jnp.split(drawn, np.cumsum(self._lengths)[:-1], axis=1)
        return tuple(part.reshape(-1, *grid) for part, grid in zip(parts, self.grids, strict=True))


_MASKS = ("masks", "last_mask", "mask_kernel")  # fields that the transformer does not see
MODELS = {"pixelcnn": PixelCNNPrior, "transformer": TransformerPrior}


def _fields(config, *but: str) -> dict[str, Any]:
    """Those of the network."""
    others = ("architecture", "condition", "condition_dropout", *but)
    return {name: value for name, value in config.model.items() if name not in others}
