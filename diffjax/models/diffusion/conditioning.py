"""All that a denoiser is told, as a config's section `conditions` chooses it: see conditions.py for the kinds."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
from jax import numpy as jnp

from diffjax.diffusion import sampling
from diffjax.errors import UserError, checked_number, checked_whole, unknown
from diffjax.models.diffusion import augmentation
from diffjax.models.diffusion.conditions import (
    Caption,
    ClipText,
    Condition,
    ErasedImage,
    Given,
    ImageEmbedding,
    Inputs,
    Label,
    LabelToken,
    Params,
    SmallerImage,
    Values,
)
from diffjax.models.diffusion.data_space import Space
from diffjax.models.networks import checked_share, classes_of, dtype_of, make, text_of
from diffjax.nn.caption_encoder import CaptionEncoder
from diffjax.registry import choose
from diffjax.typing import Clip, ImageSpec, PRNGKey, PRNGKeys, TextSpec

_MOST_TOKENS = 100_000  # that an embedding is attended to as


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
        "erased_image": functools.partial(_erased_image, space),
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
    checked_whole("conditions.image_embedding.tokens", made.tokens, low=0, high=_MOST_TOKENS)
    if made.tokens and made.width < 1:
        raise UserError(
            f"conditions.image_embedding.tokens={made.tokens}, conditions.image_embedding.width={made.width}: tokens "
            "to attend to have the width of all context, at least 1; 0 tokens: none"
        )
    return made


def _smaller_image(spec: ImageSpec, space: Space, factor: int, degradation: str) -> SmallerImage:
    degrade = choose("conditions.smaller_image.degradation", augmentation, degradation).bind()
    size = space.shape[0]
    if factor < 2 or size % factor or spec.size % (size // factor):
        raise UserError(
            f"conditions.smaller_image.factor={factor} does not divide the {size}x{size} that are diffused of "
            f"data.image_size={spec.size}: choose a factor from 2 that does"
        )
    return SmallerImage(size // factor, size, degrade)


def _erased_image(space: Space, **fields) -> ErasedImage:
    made = ErasedImage(space.shape, **fields)
    checked_number("conditions.erased_image.everything", made.everything, low=0, high=1)
    return made


def _some_classes(spec: ImageSpec) -> int:
    if not spec.classes:
        raise UserError("conditions.label_token, but the data set has no labels: leave it out")
    return spec.classes
