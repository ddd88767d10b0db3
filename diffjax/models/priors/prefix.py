"""Conditions of a token model, as embeddings that precede the tokens in the sequence.

A prefix is a constant, a class, a caption token by token, a caption's CLIP embedding, or the inputs of unCLIP's
autoregressive prior. Each can be dropped, for classifier-free guidance.
"""

import abc
import dataclasses
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffjax.models.condition_inputs import ConditionInputs
from diffjax.models.images import to_unit_range, unit_variance
from diffjax.typing import NO_TOKEN, Clip, Embeddings, Labels, PRNGKey, TextSpec, Tokens

Params = dict[str, Any]
Values = Any  # pytree of [B, ...]


class Prefix(abc.ABC):
    """A kind of condition."""

    length: int = 1  # number of embeddings P

    @abc.abstractmethod
    def init(self, key: PRNGKey, width: int, std: float) -> Params:
        """Returns fresh parameters, normal with standard deviation `std`. Consumes `key`."""

    @abc.abstractmethod
    def encode(self, inputs: ConditionInputs) -> Values:
        """Returns the condition's values, before any trained parameter."""

    @abc.abstractmethod
    def embed(self, params: Params, values: Values) -> Float[Array, "B P W"]:
        """Returns the embeddings of values."""

    @abc.abstractmethod
    def null(self, values: Values) -> Values:
        """Returns null values of the same shape, for the unconditional branch of guidance."""

    def drop(self, values: Values, where: Bool[Array, " B"]) -> Values:
        """Returns values, replaced by null values where `where`."""

        def select(null: Array, value: Array) -> Array:
            return jnp.where(where.reshape(-1, *[1] * (value.ndim - 1)), null, value)

        return jax.tree.map(select, self.null(values), values)


@dataclasses.dataclass(frozen=True)
class NullPrefix(Prefix):
    """A learned constant, for an unconditional model."""

    def init(self, key: PRNGKey, width: int, std: float) -> Params:
        return {"start": std * jax.random.normal(key, (1, width))}

    def encode(self, inputs: ConditionInputs) -> Labels:
        return jnp.zeros_like(inputs.conditions["label"])

    def embed(self, params: Params, values: Labels) -> Float[Array, "B P W"]:
        return params["start"][values][:, None]

    def null(self, values: Labels) -> Labels:
        return values


@dataclasses.dataclass(frozen=True)
class ClassPrefix(Prefix):
    """An embedding per class, and one for the null condition."""

    classes: int

    def init(self, key: PRNGKey, width: int, std: float) -> Params:
        return {"label": std * jax.random.normal(key, (self.classes + 1, width))}

    def encode(self, inputs: ConditionInputs) -> Labels:
        return inputs.conditions["label"]

    def embed(self, params: Params, values: Labels) -> Float[Array, "B P W"]:
        return params["label"][values][:, None]

    def null(self, values: Labels) -> Labels:
        return jnp.full_like(values, self.classes)


@dataclasses.dataclass(frozen=True)
class CaptionPrefix(Prefix):
    """Text tokens with position embeddings, and a padding token per position.

    Reference: Ramesh et al. 2021 (DALL-E), section 2.2.
    """

    text: TextSpec

    @property
    def length(self) -> int:
        return self.text.length

    @property
    def vocabulary(self) -> int:
        """Number of token ids, padding included."""
        return self.text.vocabulary + self.text.length

    def init(self, key: PRNGKey, width: int, std: float) -> Params:
        keys = jax.random.split(key)
        shapes = {"token": (self.vocabulary, width), "place": (self.length, width)}
        return {name: std * jax.random.normal(k, s) for k, (name, s) in zip(keys, shapes.items(), strict=True)}

    def encode(self, inputs: ConditionInputs) -> Tokens:
        return inputs.conditions["tokens"]

    def targets(self, values: Tokens) -> Int[Array, "B L"]:
        """Returns token ids to predict; padding has the ids from `text.vocabulary` on, one per position."""
        return jnp.where(values == NO_TOKEN, self.text.vocabulary + jnp.arange(self.length)[None, :], values)

    def embed(self, params: Params, values: Tokens) -> Float[Array, "B P W"]:
        return params["token"][self.targets(values)] + params["place"][None]

    def null(self, values: Tokens) -> Tokens:
        """Returns texts with nothing but the start token."""
        return jnp.where(jnp.arange(self.length)[None, :] > 0, NO_TOKEN, values)


@dataclasses.dataclass(frozen=True)
class ClipEmbeddingPrefix(Prefix):
    """A caption's CLIP embedding through a linear map; a null embedding is zero, which leaves the map's bias."""

    dimensions: int

    def init(self, key: PRNGKey, width: int, std: float) -> Params:
        kernel = std * jax.random.normal(key, (self.dimensions, width))
        return {"kernel": kernel, "bias": jnp.zeros((width,))}

    def encode(self, inputs: ConditionInputs) -> Embeddings:
        return _clip(inputs).embed_texts(inputs.conditions["tokens"])

    def embed(self, params: Params, values: Embeddings) -> Float[Array, "B P W"]:
        return (unit_variance(values) @ params["kernel"] + params["bias"][None, :])[:, None]

    def null(self, values: Embeddings) -> Embeddings:
        return jnp.zeros_like(values)


@dataclasses.dataclass(frozen=True)
class ClipCaptionPrefix(Prefix):
    """Inputs of unCLIP's autoregressive prior, by a frozen CLIP: Ramesh et al. 2022, section 2.2.

    These are the hidden states of the caption's tokens, its embedding, and the similarity of image and caption,
    quantised to equally frequent levels. Samples are conditioned on a random level of the upper half.

    Attributes:
      dimensions: dimension of the embedding.
      width: dimension of a hidden state.
      levels: number of similarity levels.
    """

    text: TextSpec
    dimensions: int
    width: int
    levels: int = 64

    @property
    def length(self) -> int:
        return self.text.length + 2

    def init(self, key: PRNGKey, width: int, std: float) -> Params:
        shapes = {
            "states": (self.width, width),
            "embedding": (self.dimensions, width),
            "level": (self.levels, width),
            "place": (self.length, width),
            "null": (self.length, width),  # embeddings of absent tokens and of the null condition
        }
        keys = jax.random.split(key, len(shapes))
        return {name: std * jax.random.normal(k, s) for k, (name, s) in zip(keys, shapes.items(), strict=True)}

    def encode(self, inputs: ConditionInputs) -> Values:
        clip, tokens = _clip(inputs), inputs.conditions["tokens"]
        embedding = clip.embed_texts(tokens)
        level = jnp.clip(jnp.floor(self._quantile(inputs, embedding) * self.levels), 0, self.levels - 1)
        present = jnp.pad(tokens != NO_TOKEN, ((0, 0), (0, 2)), constant_values=True)
        return {
            "states": clip.text_states(tokens),
            "embedding": embedding,
            "level": level.astype(jnp.int32),
            "present": present,
        }

    def _quantile(self, inputs: ConditionInputs, embedding: Embeddings) -> Float[Array, " B"]:
        """Returns the quantile [0, 1] of the similarity of image and caption; for samples, random in [0.5, 1]."""
        if "image" not in inputs.conditions:
            return 0.5 + 0.5 * jax.vmap(jax.random.uniform)(inputs.keys)
        codec = inputs.codec
        assert codec is not None and codec.agreement is not None
        return codec.agreement(codec.encode(to_unit_range(inputs.conditions["image"])), embedding)

    def embed(self, params: Params, values: Values) -> Float[Array, "B P W"]:
        parts = [
            values["states"] @ params["states"],
            (unit_variance(values["embedding"]) @ params["embedding"])[:, None],
            params["level"][values["level"]][:, None],
        ]
        x = jnp.where(values["present"][..., None], jnp.concatenate(parts, axis=1), params["null"][None])
        return x + params["place"][None]

    def null(self, values: Values) -> Values:
        return {**values, "present": jnp.zeros_like(values["present"])}


def _clip(inputs: ConditionInputs) -> Clip:
    assert inputs.clip is not None  # `prior.build` requires one
    return inputs.clip
