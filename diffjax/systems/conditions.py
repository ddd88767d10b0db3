"""What a model of codes is told of an image: vectors that stand before the codes.

Nothing, a label, a caption word by word, or the caption as CLIP embeds it. Each may be withheld, so that samples can be
guided towards it.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffjax.typing import NO_TOKEN, Clip, Embeddings, Labels, PRNGKey, TextSpec, Tokens

Params = dict[str, Any]


class Condition(abc.ABC):
    """One kind of condition. Its values are an array [B, ...] that `of` takes from a batch."""

    length = 1  # vectors that it stands as

    @abc.abstractmethod
    def init(self, key: PRNGKey, width: int, std: float) -> Params:
        """Fresh parameters; embeddings are normal with the deviation `std`."""

    @abc.abstractmethod
    def of(self, batch: Mapping[str, Array], clip: Clip | None) -> Array:
        """The values of a batch, or of what a sample is asked to show."""

    @abc.abstractmethod
    def embed(self, params: Params, values: Array) -> Float[Array, "B P W"]:
        """P = `length` vectors each."""

    @abc.abstractmethod
    def withheld(self, values: Array) -> Array:
        """The values that say nothing."""

    def drop(self, values: Array, dropped: Bool[Array, "B"]) -> Array:
        """The values, withheld where `dropped`."""
        dropped = dropped.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(dropped, self.withheld(values), values)


@dataclasses.dataclass(frozen=True)
class Nothing(Condition):
    """A vector that is always the same."""

    def init(self, key, width, std):
        return {"start": std * jax.random.normal(key, (1, width))}

    def of(self, batch, clip):
        return jnp.zeros_like(batch["label"])

    def embed(self, params, values: Labels):
        return params["start"][values][:, None]

    def withheld(self, values):
        return values


@dataclasses.dataclass(frozen=True)
class Label(Condition):
    """A vector for each class, and one more for none."""

    classes: int

    def init(self, key, width, std):
        return {"label": std * jax.random.normal(key, (self.classes + 1, width))}

    def of(self, batch, clip):
        return batch["label"]

    def embed(self, params, values: Labels):
        return params["label"][values][:, None]

    def withheld(self, values):
        return jnp.full_like(values, self.classes)


@dataclasses.dataclass(frozen=True)
class Caption(Condition):
    """Tokens, each with an embedding of its place; one for each place stands for no token (DALL-E, section 2.2)."""

    text: TextSpec

    @property
    def length(self) -> int:
        return self.text.length

    @property
    def size(self) -> int:
        """How many different targets there are."""
        return self.text.vocabulary + self.text.length

    def init(self, key, width, std):
        keys = jax.random.split(key)
        shapes = {"token": (self.size, width), "place": (self.length, width)}
        return {name: std * jax.random.normal(k, s) for k, (name, s) in zip(keys, shapes.items(), strict=True)}

    def of(self, batch, clip):
        return batch["tokens"]

    def targets(self, values: Tokens) -> Int[Array, "B L"]:
        """What the transformer predicts: tokens, and at places without one the places' own numbers behind those."""
        return jnp.where(values == NO_TOKEN, self.text.vocabulary + jnp.arange(self.length)[None, :], values)

    def embed(self, params, values: Tokens):
        return params["token"][self.targets(values)] + params["place"][None]

    def withheld(self, values):
        """Only the token that starts every text."""
        return jnp.where(jnp.arange(self.length)[None, :] > 0, NO_TOKEN, values)


@dataclasses.dataclass(frozen=True)
class Embedding(Condition):
    """The caption's CLIP embedding through a linear map, whose bias alone is left of one that is withheld."""

    dimensions: int

    def init(self, key, width, std):
        kernel = std * jax.random.normal(key, (self.dimensions, width))
        return {"kernel": kernel, "bias": jnp.zeros((width,))}

    def of(self, batch, clip):
        return clip.embed_texts(batch["tokens"])

    def embed(self, params, values: Embeddings):
        # of unit length on the whole; of unit variance each, as a layer expects its inputs
        scaled = values * self.dimensions**0.5
        return (scaled @ params["kernel"] + params["bias"][None, :])[:, None]

    def withheld(self, values):
        return jnp.zeros_like(values)
