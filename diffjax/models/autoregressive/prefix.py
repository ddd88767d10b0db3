"""What a model of codes is told of an image: vectors that stand before the codes.

Nothing, a label, a caption word by word, the caption as CLIP embeds it, or all that unCLIP's autoregressive prior is
told. Each may be withheld, so that samples can be guided towards it.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffjax.models.embeddings import unit_variance
from diffjax.models.pixels import to_unit_range
from diffjax.typing import NO_TOKEN, Clip, Codec, Embeddings, Labels, PRNGKey, PRNGKeys, TextSpec, Tokens

Params = dict[str, Any]
Values = Any  # a tree of [B, ...]


class Told(NamedTuple):
    """What values are made of: a batch, or what samples are asked to show; and a key each."""

    batch: Mapping[str, Array]
    keys: PRNGKeys
    codec: Codec
    clip: Clip | None


class Prefix(abc.ABC):
    """One kind of them."""

    length = 1  # vectors that it stands as

    @abc.abstractmethod
    def init(self, key: PRNGKey, width: int, std: float) -> Params:
        """Fresh parameters; embeddings are normal with the deviation `std`."""

    @abc.abstractmethod
    def of(self, told: Told) -> Values:
        """Its values."""

    @abc.abstractmethod
    def embed(self, params: Params, values: Values) -> Float[Array, "B P W"]:
        """P = `length` vectors each."""

    @abc.abstractmethod
    def withheld(self, values: Values) -> Values:
        """The values that say nothing."""

    def drop(self, values: Values, dropped: Bool[Array, "B"]) -> Values:
        """The values, withheld where `dropped`."""

        def choose(without, value):
            return jnp.where(dropped.reshape(-1, *[1] * (value.ndim - 1)), without, value)

        return jax.tree.map(choose, self.withheld(values), values)


@dataclasses.dataclass(frozen=True)
class Nothing(Prefix):
    """A vector that is always the same."""

    def init(self, key, width, std):
        return {"start": std * jax.random.normal(key, (1, width))}

    def of(self, told):
        return jnp.zeros_like(told.batch["label"])

    def embed(self, params, values: Labels):
        return params["start"][values][:, None]

    def withheld(self, values):
        return values


@dataclasses.dataclass(frozen=True)
class Label(Prefix):
    """A vector for each class, and one more for none."""

    classes: int

    def init(self, key, width, std):
        return {"label": std * jax.random.normal(key, (self.classes + 1, width))}

    def of(self, told):
        return told.batch["label"]

    def embed(self, params, values: Labels):
        return params["label"][values][:, None]

    def withheld(self, values):
        return jnp.full_like(values, self.classes)


@dataclasses.dataclass(frozen=True)
class Caption(Prefix):
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

    def of(self, told):
        return told.batch["tokens"]

    def targets(self, values: Tokens) -> Int[Array, "B L"]:
        """What the transformer predicts: tokens, and at places without one the places' own numbers behind those."""
        return jnp.where(values == NO_TOKEN, self.text.vocabulary + jnp.arange(self.length)[None, :], values)

    def embed(self, params, values: Tokens):
        return params["token"][self.targets(values)] + params["place"][None]

    def withheld(self, values):
        """Only the token that starts every text."""
        return jnp.where(jnp.arange(self.length)[None, :] > 0, NO_TOKEN, values)


@dataclasses.dataclass(frozen=True)
class Embedding(Prefix):
    """The caption's CLIP embedding through a linear map, whose bias alone is left of one that is withheld."""

    dimensions: int

    def init(self, key, width, std):
        kernel = std * jax.random.normal(key, (self.dimensions, width))
        return {"kernel": kernel, "bias": jnp.zeros((width,))}

    def of(self, told):
        return told.clip.embed_texts(told.batch["tokens"])

    def embed(self, params, values: Embeddings):
        return (unit_variance(values) @ params["kernel"] + params["bias"][None, :])[:, None]

    def withheld(self, values):
        return jnp.zeros_like(values)


@dataclasses.dataclass(frozen=True)
class ClipCaption(Prefix):
    """What unCLIP's autoregressive prior is told (Ramesh et al. 2022, section 2.2), as CLIP reads the caption.

    The states of its tokens, its embedding, and how well the picture agrees with it, in `levels` that are equally
    frequent. Samples are asked for one of the upper half, drawn by their key.
    """

    text: TextSpec
    dimensions: int
    width: int  # of a state
    levels: int = 64

    @property
    def length(self) -> int:
        return self.text.length + 2

    def init(self, key, width, std):
        shapes = {
            "states": (self.width, width),
            "embedding": (self.dimensions, width),
            "level": (self.levels, width),
            "place": (self.length, width),
            "null": (self.length, width),  # where nothing is said
        }
        keys = jax.random.split(key, len(shapes))
        return {name: std * jax.random.normal(k, s) for k, (name, s) in zip(keys, shapes.items(), strict=True)}

    def of(self, told):
        tokens = told.batch["tokens"]
        embedding = told.clip.embed_texts(tokens)
        if "image" in told.batch:
            share = told.codec.agreement(told.codec.encode(to_unit_range(told.batch["image"])), embedding)
        else:
            share = 0.5 + 0.5 * jax.vmap(jax.random.uniform)(told.keys)
        level = jnp.clip(jnp.floor(share * self.levels), 0, self.levels - 1).astype(jnp.int32)
        there = jnp.pad(tokens != NO_TOKEN, ((0, 0), (0, 2)), constant_values=True)
        return {"states": told.clip.text_states(tokens), "embedding": embedding, "level": level, "there": there}

    def embed(self, params, values):
        parts = [
            values["states"] @ params["states"],
            (unit_variance(values["embedding"]) @ params["embedding"])[:, None],
            params["level"][values["level"]][:, None],
        ]
        x = jnp.where(values["there"][..., None], jnp.concatenate(parts, axis=1), params["null"][None])
        return x + params["place"][None]

    def withheld(self, values):
        return {**values, "there": jnp.zeros_like(values["there"])}
