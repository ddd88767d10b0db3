"""Autoregressive models p(tokens | condition) of the codes of a codec, one token per code.

A gated PixelCNN models codes of one scale; a causal transformer models the codes of all scales in one sequence.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from diffjax.errors import UserError
from diffjax.models.networks import apply, dtype_of, make
from diffjax.models.priors.prefix import CaptionPrefix, Prefix, Values
from diffjax.models.priors.token_sequence import TokenSequence
from diffjax.nn import masks, pixelcnn, transformer
from diffjax.nn.layers import Dense
from diffjax.typing import Codec, Codes, PRNGKey, PRNGKeys

Params = dict[str, Any]
# (keys, logits) -> a token per row of the logits. With guidance there are twice as many rows as keys: conditional
# and then unconditional logits, and both rows of an example get the same token.
SampleToken = Callable[[PRNGKeys, Float[Array, "B K"]], Int[Array, " B"]]


@dataclasses.dataclass(frozen=True)
class TokenModel(abc.ABC):
    """An autoregressive model of the codes of a codec.

    Attributes:
      network: conditioned on the previous tokens.
      prefix: the condition.
      grids: h, w, n of each scale, coarsest first; n tokens per position.
      vocabulary: number of values of a token.
    """

    network: nn.Module
    prefix: Prefix
    grids: tuple[tuple[int, int, int], ...]
    vocabulary: int

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: ConfigDict, codec: Codec, prefix: Prefix) -> "TokenModel":
        """Builds the model of `config.model` for the codes of `codec`. Raises UserError if they do not fit."""

    @abc.abstractmethod
    def init(self, key: PRNGKey) -> Params:
        """Returns fresh parameters, under which all tokens are equally likely. Consumes `key`."""

    @abc.abstractmethod
    def nll(
        self, params: Params, codes: Codes, values: Values, dropout_keys: PRNGKeys | None
    ) -> Mapping[str, Float[Array, "B _"]]:
        """Returns -log p in nats of each token of the "codes", in sampling order, and of a modelled "text"."""

    @abc.abstractmethod
    def sample(
        self, params: Params, keys: PRNGKeys, values: Values, sample_token: SampleToken, known: Int[Array, "B K"]
    ) -> Codes:
        """Samples tokens in sequence; the first K are `known`."""


class PixelCNNPrior(TokenModel):
    """A gated PixelCNN over one scale; the condition, one embedding, shifts every gate."""

    network: pixelcnn.PixelCNN

    @classmethod
    def from_config(cls, config: ConfigDict, codec: Codec, prefix: Prefix) -> "PixelCNNPrior":
        codes = [n for *_, n in codec.grids]
        if codes != [1]:
            raise UserError(
                "model.architecture=pixelcnn: is only supported for one scale with one code per position, and this "
                f"codec has {len(codes)} scales of {codes[0]}; use transformer"
            )
        if prefix.length > 1:
            raise UserError(
                "model.architecture=pixelcnn: does not support captions token by token; set "
                "model.architecture=transformer, or model.condition=clip"
            )
        network = make(pixelcnn.PixelCNN, _fields(config), "model", outputs=codec.vocabulary, dtype=dtype_of(config))
        return cls(network, prefix, codec.grids, codec.vocabulary)

    def init(self, key: PRNGKey) -> Params:
        network_key, embed_key, condition_key = jax.random.split(key, 3)
        height, width, _ = self.grids[0]
        features = self.network.features
        x, shift = jnp.zeros((1, height, width, features)), jnp.zeros((1, 1, 1, features))
        return {
            "network": self.network.init(network_key, x, shift)["params"],
            "embedding": jax.random.normal(embed_key, (self.vocabulary, features)),
            "condition": self.prefix.init(condition_key, features, 1.0),
        }

    def _shift(self, params: Params, values: Values) -> Float[Array, "B 1 1 W"]:
        return self.prefix.embed(params["condition"], values)[:, None]

    def nll(
        self, params: Params, codes: Codes, values: Values, dropout_keys: PRNGKeys | None
    ) -> Mapping[str, Float[Array, "B _"]]:
        (tokens,) = (level[..., 0] for level in codes)
        x = params["embedding"][tokens]
        logits = apply(self.network, params["network"], x, self._shift(params, values), dropout_keys)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return {"codes": nats.reshape(len(nats), -1)}

    def sample(
        self, params: Params, keys: PRNGKeys, values: Values, sample_token: SampleToken, known: Int[Array, "B K"]
    ) -> Codes:
        height, width, _ = self.grids[0]
        known = jnp.pad(known, ((0, 0), (0, height * width - (count := known.shape[1]))))

        def step(keys: PRNGKeys, logits: Array, place: pixelcnn.Place) -> tuple[Array, Array]:
            position = place[0] * width + place[1]
            token = jnp.where(position < count, known[:, position], sample_token(keys, logits))
            return token, params["embedding"][token]

        shift = self._shift(params, values)
        tokens = pixelcnn.generate(self.network, params["network"], step, keys, shift, height, width)
        return (tokens[..., None],)


@dataclasses.dataclass(frozen=True)
class TransformerPrior(TokenModel):
    """A causal transformer over the prefix and then the tokens of all scales, in one sequence.

    With a caption it is DALL-E's transformer (Ramesh et al. 2021, section 2.2): the caption is predicted as well, rows
    and columns of image tokens have an embedding each, and every layer has its own sparse mask. Text and image tokens
    have separate heads, which equals one head with masked logits.

    Attributes:
      masks: mask of each layer, by name in nn/masks.py; (): causal attention in all layers.
      kernel: kernel size of convolutional masks.
    """

    network: transformer.Transformer
    masks: tuple[str, ...] = ()
    kernel: int = 11

    @classmethod
    def from_config(cls, config: ConfigDict, codec: Codec, prefix: Prefix) -> "TransformerPrior":
        network = make(transformer.Transformer, _fields(config, *_MASKS), "model", dtype=dtype_of(config))
        names, kernel = _mask_names(config.model, network.layers), config.model.get("mask_kernel", 11)
        has_one_scale = len(codec.grids) == 1 and codec.grids[0][2] == 1
        if set(names) != {"full"} and not has_one_scale:
            raise UserError(
                f"model.masks={tuple(names)}: are only supported for a codec with one scale and one code per position; "
                "leave them ()"
            )
        try:
            for name in names:
                masks.sparse(name, prefix=1, height=1, width=1, kernel=kernel)
        except ValueError as error:
            raise UserError(f"model.masks, model.last_mask, model.mask_kernel={kernel}: {error}") from error
        sparse = tuple(names) if set(names) != {"full"} else ()
        return cls(network, prefix, codec.grids, codec.vocabulary, sparse, kernel)

    @property
    def _sequence(self) -> TokenSequence:
        return TokenSequence(self.grids, self.vocabulary, self.network.width)

    @property
    def _mask(self) -> str | tuple[Array, ...]:
        """Attention mask of the inputs, which do not include the last token."""
        if not self.masks:
            return "causal"
        height, width, _ = self.grids[0]
        by_name = {
            name: masks.sparse(name, prefix=self.prefix.length, height=height, width=width, kernel=self.kernel)
            for name in set(self.masks)
        }
        return tuple(jnp.asarray(by_name[name][:-1, :-1]) for name in self.masks)

    @property
    def _positions(self) -> Float[Array, "T 2"]:
        return self._sequence.grid_positions(self.prefix.length)

    def init(self, key: PRNGKey) -> Params:
        keys, width = jax.random.split(key, 6), self.network.width
        x = jnp.zeros((1, self.prefix.length + self._sequence.length - 1, width))
        params = {
            "network": self.network.init(keys[0], x, positions=self._positions)["params"],
            **self._sequence.init(keys[1], keys[2]),
            "head": self._head.init(keys[3], x)["params"],
            "condition": self.prefix.init(keys[4], width, 0.02),
        }
        if isinstance(self.prefix, CaptionPrefix):
            params["text_head"] = _text_head(self.prefix).init(keys[5], x)["params"]
        return params

    @property
    def _head(self) -> Dense:
        return Dense(self.vocabulary, "zero")

    def _logits(self, params: Params, h: Float[Array, "B ... W"]) -> Float[Array, "B ... K"]:
        return apply(self._head, params["head"], h)

    def nll(
        self, params: Params, codes: Codes, values: Values, dropout_keys: PRNGKeys | None
    ) -> Mapping[str, Float[Array, "B _"]]:
        tokens = self._sequence.flatten(codes)
        prefix, length = self.prefix.embed(params["condition"], values), self.prefix.length
        x = jnp.concatenate([prefix, self._sequence.embed(params, tokens[:, :-1])], axis=1)
        options = {"mask": self._mask, "dropout_keys": dropout_keys, "positions": self._positions}
        h = apply(self.network, params["network"], x, **options)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        nats = {"codes": cross_entropy(self._logits(params, h[:, length - 1 :]), tokens)}
        if isinstance(self.prefix, CaptionPrefix):
            logits = apply(_text_head(self.prefix), params["text_head"], h[:, : length - 1])
            nats["text"] = cross_entropy(logits, self.prefix.targets(values)[:, 1:])
        return nats

    def sample(
        self, params: Params, keys: PRNGKeys, values: Values, sample_token: SampleToken, known: Int[Array, "B K"]
    ) -> Codes:
        sequence = self._sequence
        levels, position_embeddings = jnp.asarray(sequence.levels), sequence.embed_positions(params)

        def step(keys: PRNGKeys, h: Array, position: Array) -> tuple[Array, Array]:
            token, index = sample_token(keys, self._logits(params, h)), position - self.prefix.length
            return token, params["embedding"][levels[index], token] + position_embeddings[index][None, :]

        prefix = self.prefix.embed(params["condition"], values)
        prefix = jnp.concatenate([prefix, sequence.embed(params, known)], axis=1)
        count = sequence.length - known.shape[1]
        attention = (self._mask, self._positions)
        new = transformer.generate(self.network, params["network"], step, keys, prefix, count, *attention)
        return sequence.unflatten(jnp.concatenate([known, new], axis=1))


_MASKS = ("masks", "last_mask", "mask_kernel")  # fields of config.model that are not the network's
MODELS = {"pixelcnn": PixelCNNPrior, "transformer": TransformerPrior}


def _text_head(prefix: CaptionPrefix) -> Dense:
    return Dense(prefix.vocabulary, "zero")


def _mask_names(model: ConfigDict, layers: int) -> list[str]:
    """Returns the mask of each layer: `model.masks` in a cycle, and `model.last_mask` in the last layer."""
    cycle = tuple(model.get("masks", ())) or ("full",)
    names = [cycle[layer % len(cycle)] for layer in range(layers)]
    names[-1] = model.get("last_mask", "") or names[-1]
    return names


def _fields(config: ConfigDict, *but: str) -> dict[str, Any]:
    """Returns the fields of `config.model` that are the network's."""
    others = ("architecture", "condition", "condition_dropout", *but)
    return {name: value for name, value in config.model.items() if name not in others}
