"""What a denoiser is told of a picture beside x_t and the time.

A label, a caption by a transformer of its own (GLIDE) or by a frozen CLIP (Stable Diffusion; unCLIP's prior), the
CLIP embedding of the picture (unCLIP's decoder), the picture at a smaller size (an upsampler), the picture with a part
erased (in-painting). Any of them go together. Each may be withheld, so that samples can be guided towards it: a config
says from which share of the examples.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from diffjax.diffusion import sampling
from diffjax.errors import UserError
from diffjax.models.diffusion import inpainting_masks
from diffjax.models.diffusion.data_space import kept_in
from diffjax.models.embeddings import unit_variance
from diffjax.models.pixels import smaller
from diffjax.models.resizing import larger
from diffjax.nn.caption_encoder import CaptionEncoder
from diffjax.nn.layers import Dense, timestep_embedding
from diffjax.typing import NO_TOKEN, Clip, Embeddings, Images, Labels, PRNGKey, PRNGKeys, TextSpec

Params = dict[str, Any]
Values = Any  # a tree of [B, ...]


class Inputs(NamedTuple):
    """The doors of a denoising network."""

    label: Labels | None = None
    embedding: Embeddings | None = None  # added to the time's
    context: Float[Array, "B L W"] | None = None  # attended to
    context_mask: Bool[Array, "B L"] | None = None  # which of it there is
    channels: Float[Array, "B H W C"] | None = None  # beside those of x_t


class Given(NamedTuple):
    """What conditions are made of.

    Attributes:
      asked: in training the examples' "label", "tokens" and "original", the whole pictures in [-1, 1]. Of samples what
        they are asked to show: the same, of which no original is needed where it has "image_embedding" (of unit
        length), "smaller_image", or "image" and "mask" (1: kept).
      encode: pictures to what is diffused of them.
      keys: one an example.
      level: of the degradation of smaller images; None: of each example one is drawn.
    """

    asked: Mapping[str, Array]
    clip: Clip | None
    encode: Callable[[Images], Array]
    keys: PRNGKeys
    level: Array | None


class Condition(abc.ABC):
    """One kind of condition.

    One that may be withheld has `withheld(values, where)`, its values without what they say `where` (bool [B]).
    """

    dropout: float = 0.0  # share of examples that it is withheld from in training

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters."""
        return {}

    @abc.abstractmethod
    def of(self, given: Given) -> Values:
        """Its values: what the network is told, before any parameter."""

    @abc.abstractmethod
    def inputs(self, params: Params, values: Values, clip: Clip | None) -> Inputs:
        """The values as the network takes them."""

    def context_width(self, clip: Clip | None) -> int:
        """Of the tokens to attend to; 0: there are none."""
        return 0


@dataclasses.dataclass(frozen=True)
class Label(Condition):
    """A class, by the network's table, whose last row says none."""

    classes: int
    dropout: float = 0.0

    def of(self, given):
        return given.asked["label"]

    def withheld(self, values, where):
        return jnp.where(where, self.classes, values)

    def inputs(self, params, values, clip):
        return Inputs(label=values)


@dataclasses.dataclass(frozen=True)
class LabelToken(Condition):
    """A class as one token to attend to: class-conditional latent diffusion (Rombach et al. 2022, appendix E)."""

    classes: int
    width: int
    dropout: float = 0.0

    def init(self, key):
        return {"table": jax.random.normal(key, (self.classes + 1, self.width))}

    def of(self, given):
        return given.asked["label"]

    def withheld(self, values, where):
        return jnp.where(where, self.classes, values)

    def inputs(self, params, values, clip):
        return Inputs(context=params["table"][values][:, None])

    def context_width(self, clip):
        return self.width


@dataclasses.dataclass(frozen=True)
class Caption(Condition):
    """Read by a transformer that is trained with the denoiser, its last place an embedding too (GLIDE, section 3.1).

    One that is withheld is without any token, as is that of a sample that is asked for without a caption.
    """

    text: TextSpec
    encoder: CaptionEncoder
    dropout: float = 0.0

    def init(self, key):
        return self.encoder.init(key, jnp.zeros((1, self.text.length), jnp.int32))["params"]

    def of(self, given):
        without = jnp.full((len(given.keys), self.text.length), NO_TOKEN)
        return given.asked.get("tokens", without)

    def withheld(self, values, where):
        return jnp.where(where[:, None], NO_TOKEN, values)

    def inputs(self, params, values, clip):
        states = self.encoder.apply({"params": params}, values)
        return Inputs(embedding=states[:, -1], context=states)

    def context_width(self, clip):
        return self.encoder.width


@dataclasses.dataclass(frozen=True)
class ClipText(Condition):
    """What a frozen CLIP makes of the caption: the states of its tokens, the embedding of the whole, or both.

    Of a caption that is withheld the start is left, which is the same for all.
    """

    states: bool = True
    embedding: bool = False
    dropout: float = 0.0
    masked: bool = False  # whether the network is told which tokens there are

    def of(self, given):
        if "tokens" not in given.asked:
            raise UserError("this stage reads captions by a CLIP: give --prompt beside the image")
        return given.asked["tokens"]

    def withheld(self, values, where):
        behind = jnp.arange(values.shape[1])[None, :] > 0
        return jnp.where(where[:, None] & behind, NO_TOKEN, values)

    def inputs(self, params, values, clip):
        return Inputs(
            embedding=unit_variance(clip.embed_texts(values)) if self.embedding else None,
            context=clip.text_states(values) if self.states else None,
            context_mask=values != NO_TOKEN if self.states and self.masked else None,
        )

    def context_width(self, clip):
        return clip.width if self.states else 0


@dataclasses.dataclass(frozen=True)
class ImageEmbedding(Condition):
    """The CLIP embedding of the picture: added to the time's, and as more tokens to attend to (unCLIP, section 2.1).

    A learned vector stands for one that is withheld.
    """

    dimensions: int
    tokens: int = 4
    width: int = 0  # of those tokens: that of all context
    dropout: float = 0.0

    def init(self, key):
        null = {"null": jnp.zeros((self.dimensions,))}
        if not self.tokens:
            return null
        return null | {"tokens": self._tokens.init(key, jnp.zeros((1, self.dimensions)))["params"]}

    @property
    def _tokens(self) -> Dense:
        return Dense(self.tokens * self.width, "torch")

    def of(self, given):
        embedding = given.asked.get("image_embedding")
        if embedding is None:
            embedding = given.clip.embed_images(_original(given.asked))
        return {"embedding": embedding, "present": jnp.ones(len(embedding), bool)}

    def withheld(self, values, where):
        return {**values, "present": values["present"] & ~where}

    def inputs(self, params, values, clip):
        embedding = jnp.where(values["present"][:, None], unit_variance(values["embedding"]), params["null"][None, :])
        if not self.tokens:
            return Inputs(embedding=embedding)
        tokens = self._tokens.apply({"params": params["tokens"]}, embedding)
        return Inputs(embedding=embedding, context=tokens.reshape(len(tokens), self.tokens, self.width))

    def context_width(self, clip):
        return self.width if self.tokens else 0


@dataclasses.dataclass(frozen=True)
class SmallerImage(Condition):
    """The picture at a smaller size, degraded to a level that the network is told (Ho et al. 2021b; unCLIP, sec. 2.3).

    In training each example has a level of its own, uniform from none to all.
    """

    side: int
    space_side: int
    degrade: Callable  # of models/diffusion/augmentation.py

    _FREQUENCIES = 32

    def of(self, given):
        level_keys, keys = sampling.split(given.keys)
        asked = given.asked
        small = asked.get("smaller_image")
        if small is None:
            original = _original(asked)
            small = smaller(original, original.shape[1] // self.side)
        level = jax.vmap(jax.random.uniform)(level_keys)
        if given.level is not None:
            level = jnp.full_like(level, given.level)
        return {"image": jax.vmap(self.degrade)(keys, small, level), "level": level}

    def inputs(self, params, values, clip):
        waves = timestep_embedding(1000.0 * values["level"], self._FREQUENCIES, convention="adm")
        return Inputs(embedding=waves, channels=larger(values["image"], self.space_side // self.side))


@dataclasses.dataclass(frozen=True)
class ErasedImage(Condition):
    """The picture with a part erased, and which (GLIDE's and latent diffusion's in-painting models).

    In training a part is chosen at random. Of samples without an image all is erased.
    """

    shape: tuple[int, ...]  # of what is diffused
    everything: float = 0.25  # share of examples of which all is erased

    def of(self, given):
        asked, count = given.asked, len(given.keys)
        if "mask" in asked:
            picture, kept = asked["image"], asked["mask"][..., :1]
        elif "original" in asked:
            picture = asked["original"]
            erase = functools.partial(inpainting_masks.random_mask, side=picture.shape[1], everything=self.everything)
            kept = 1.0 - jax.vmap(erase)(given.keys)
        else:
            return {"image": jnp.zeros((count, *self.shape)), "erased": jnp.ones((count, *self.shape[:2], 1))}
        return {"image": given.encode(picture * kept), "erased": 1.0 - kept_in(kept, self.shape[0])}

    def inputs(self, params, values, clip):
        return Inputs(channels=jnp.concatenate([values["image"], values["erased"]], axis=-1))


def _original(asked: Mapping[str, Array]) -> Images:
    if "original" not in asked:
        raise UserError("samples of this stage are made of a picture: give --image=FILE, or sample the whole chain")
    return asked["original"]
