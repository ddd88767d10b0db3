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

from diffjax.choice import choose
from diffjax.diffusion import sampling
from diffjax.errors import UserError, unknown
from diffjax.nn.caption_encoder import CaptionEncoder
from diffjax.nn.layers import Dense, timestep_embedding
from diffjax.systems import degradations, erasing
from diffjax.systems.embeddings import unit_variance
from diffjax.systems.networks import checked_share, classes_of, dtype_of, make, text_of
from diffjax.systems.pixels import smaller
from diffjax.systems.resizing import larger
from diffjax.systems.spaces import Space, kept_in
from diffjax.typing import (
    NO_TOKEN,
    Clip,
    Embeddings,
    Images,
    ImageSpec,
    Labels,
    PRNGKey,
    PRNGKeys,
    TextSpec,
)

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
    """One kind of condition."""

    dropout: float = 0.0  # share of examples that it is withheld from in training

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters."""
        return {}

    @abc.abstractmethod
    def of(self, given: Given) -> Values:
        """Its values: what the network is told, before any parameter."""

    def withheld(self, values: Values, where: Bool[Array, "B"]) -> Values:
        """The values, without what they say `where`."""
        raise NotImplementedError

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
    degrade: Callable  # of systems/degradations.py

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
            erase = functools.partial(erasing.random_mask, side=picture.shape[1], everything=self.everything)
            kept = 1.0 - jax.vmap(erase)(given.keys)
        else:
            return {"image": jnp.zeros((count, *self.shape)), "erased": jnp.ones((count, *self.shape[:2], 1))}
        return {"image": given.encode(picture * kept), "erased": 1.0 - kept_in(kept, self.shape[0])}

    def inputs(self, params, values, clip):
        return Inputs(channels=jnp.concatenate([values["image"], values["erased"]], axis=-1))


@dataclasses.dataclass(frozen=True)
class Conditions:
    """All that a denoiser is told, by the names of a config's section `conditions`."""

    each: Mapping[str, Condition]
    text: TextSpec | None = None  # that they read

    @property
    def guided(self) -> bool:
        """Whether any is withheld at times."""
        return any(one.dropout for one in self.each.values())

    @property
    def takes(self) -> dict[str, int]:
        """As typing.System."""
        found = {"image_embedding": lambda one: one.dimensions, "smaller_image": lambda one: one.side}
        return {name: size(self.each[name]) for name, size in found.items() if name in self.each}

    @property
    def label_rows(self) -> int:
        """Of the network's table of labels, 0: it has none."""
        label = self.each.get("label")
        return label.classes + (label.dropout > 0) if label else 0

    @property
    def classes(self) -> int:
        return max([0, *(one.classes for one in self.each.values() if isinstance(one, Label | LabelToken))])

    def init(self, key: PRNGKey) -> Params:
        keys = jax.random.split(key, len(self.each) + 1)
        fresh = {name: one.init(k) for (name, one), k in zip(self.each.items(), keys, strict=False)}
        return {name: params for name, params in fresh.items() if params}

    def of(self, given: Given) -> Values:
        """Every condition's values, each by keys of its own."""
        keys = {name: sampling.fold_in(given.keys, i) for i, name in enumerate(self.each)}
        return {name: one.of(given._replace(keys=keys[name])) for name, one in self.each.items()}

    def dropped(self, values: Values, keys: PRNGKeys) -> Values:
        """Each withheld from its share of the examples (Ho & Salimans 2022, algorithm 1), each by itself."""
        rates = {name: one.dropout for name, one in self.each.items()}
        where = {
            name: jax.vmap(jax.random.bernoulli, (0, None))(sampling.fold_in(keys, i), rate)
            for i, (name, rate) in enumerate(rates.items())
        }
        return values | {name: self.each[name].withheld(values[name], where[name]) for name in where if rates[name]}

    def withheld(self, values: Values, count: int) -> Values:
        """All that is withheld at times."""
        where = jnp.ones(count, bool)
        return values | {name: one.withheld(values[name], where) for name, one in self.each.items() if one.dropout}

    def inputs(self, params: Params, values: Values, clip: Clip | None) -> Inputs:
        """Embeddings beside one another, contexts and channels behind one another."""
        found = [one.inputs(params.get(name, {}), values[name], clip) for name, one in self.each.items()]

        def joined(door: str, axis: int):
            given = [value for one in found if (value := getattr(one, door)) is not None]
            return jnp.concatenate(given, axis) if len(given) > 1 else given[0] if given else None

        axes = {"label": 0, "embedding": -1, "context": 1, "context_mask": 1, "channels": -1}
        return Inputs(**{door: joined(door, axis) for door, axis in axes.items()})


def make_conditions(
    config, spec: ImageSpec, space: Space, clip: Clip | None = None, *, masked: bool = False
) -> Conditions:
    """Those of a config's section `conditions`, and the label where its section `diffusion` asks for it.

    `masked`: the network takes context of which not all is there. Raises UserError for what does not exist or fit.
    """
    each, sections = {}, dict(config.get("conditions", {}))
    if "class_conditional" in config.diffusion and (classes := classes_of(config, "diffusion", spec)):
        each["label"] = Label(classes, checked_share("diffusion.label_dropout", config.diffusion.label_dropout))
    makers = {
        "label_token": lambda **fields: LabelToken(_some_classes(spec), **fields),
        "caption": functools.partial(_caption, config, clip),
        "clip_text": lambda **fields: ClipText(masked=masked, **fields),
        "image_embedding": functools.partial(_image_embedding, clip),
        "smaller_image": functools.partial(_smaller_image, spec, space),
        "erased_image": lambda **fields: ErasedImage(space.shape, **fields),
    }
    for name, section in sections.items():
        if name not in makers:
            raise unknown("field of config.conditions", name, makers)
        if name in ("clip_text", "image_embedding") and clip is None:
            raise UserError(f"conditions.{name} is of a trained CLIP: set --config.clip=WORKDIR")
        if "dropout" in section:
            checked_share(f"conditions.{name}.dropout", section.dropout)
        try:
            each[name] = makers[name](**section)
        except TypeError as error:
            raise UserError(f"config.conditions.{name}: {str(error).split('() ')[-1]}") from error
    widths = {name: width for name, one in each.items() if (width := one.context_width(clip))}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"conditions.{name} {width}" for name, width in widths.items())
        raise UserError(f"tokens to attend to have one width, and here are {told}")
    reads = {"caption", "clip_text"} & each.keys()
    text = None if not reads else text_of(config) if clip is None else clip.text
    return Conditions(each, text)


def _caption(config, clip: Clip | None, dropout: float = 0.0, **fields) -> Caption:
    text = clip.text if clip else text_of(config)
    given = {"vocabulary": text.vocabulary, "dtype": dtype_of(config)}
    return Caption(text, make(CaptionEncoder, fields, "conditions.caption", **given), dropout)


def _image_embedding(clip: Clip, **fields) -> ImageEmbedding:
    made = ImageEmbedding(clip.dimensions, **fields)
    if made.tokens < 0 or (made.tokens and made.width < 1):
        raise UserError(
            f"conditions.image_embedding.tokens={made.tokens}, conditions.image_embedding.width={made.width}: tokens "
            "to attend to have the width of all context, at least 1; 0 tokens: none"
        )
    return made


def _smaller_image(spec: ImageSpec, space: Space, factor: int, degradation: str) -> SmallerImage:
    degrade = choose("conditions.smaller_image.degradation", degradations, degradation).bind()
    size = space.shape[0]
    if factor < 2 or size % factor or spec.size % (size // factor):
        raise UserError(
            f"conditions.smaller_image.factor={factor} does not divide the {size}x{size} that are diffused of pictures "
            f"of {spec.size}x{spec.size}: choose a factor from 2 that does"
        )
    return SmallerImage(size // factor, size, degrade)


def _some_classes(spec: ImageSpec) -> int:
    if not spec.classes:
        raise UserError("conditions.label_token, but the data set has no labels: leave it out")
    return spec.classes


def _original(asked: Mapping[str, Array]) -> Images:
    if "original" not in asked:
        raise UserError("samples of this stage are made of a picture: give --image=FILE, or sample the whole chain")
    return asked["original"]
