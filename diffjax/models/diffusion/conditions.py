"""All conditioning inputs of a denoiser; a config's section `conditions` chooses any of them.

A class label, a number, a scale of distilled guidance, a caption, the CLIP embedding of an image (unCLIP), a
low-resolution image (upsamplers), and a partly masked image (inpainting). Conditions with `dropout` > 0 support
classifier-free guidance.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from diffjax.diffusion.random import fold_in_each
from diffjax.errors import UserError, unknown, validate_integer, validate_number
from diffjax.models.condition_inputs import ConditionInputs
from diffjax.models.diffusion import augmentation
from diffjax.models.diffusion.condition_kinds import (
    AugmentLabel,
    Caption,
    ClassLabel,
    ClassToken,
    ClipText,
    Condition,
    GuidanceScale,
    ImageEmbedding,
    LowResImage,
    Mask,
    MaskedImage,
    NetworkInputs,
    Number,
    Params,
    Values,
)
from diffjax.models.diffusion.data_space import DataSpace
from diffjax.models.diffusion.nonleaky_augmentation import NonLeakyAugmentation
from diffjax.models.images import upsample_bicubic, upsample_bilinear
from diffjax.models.networks import classes_of, dtype_of, make, text_of, validate_probability
from diffjax.nn.caption_encoder import CaptionEncoder
from diffjax.registry import lookup
from diffjax.typing import Clip, ImageSpec, PRNGKey, PRNGKeys, TextSpec

_MAX_TOKENS = 100_000  # of context per embedding


@dataclasses.dataclass(frozen=True)
class Conditions:
    """All conditioning inputs of a denoiser.

    Attributes:
      each: conditions by name, in the order of the config; the position is folded into random keys.
      text: length and vocabulary of captions; None: no condition reads them.
    """

    each: Mapping[str, Condition]
    text: TextSpec | None = None

    @property
    def supports_guidance(self) -> bool:
        """True if any condition supports guidance."""
        return bool(self.guided)

    @property
    def guided(self) -> tuple[str, ...]:
        """Names of the conditions that support guidance."""
        return tuple(name for name, condition in self.each.items() if condition.supports_guidance)

    @property
    def guided_text(self) -> tuple[str, ...]:
        """Names of the conditions on captions that support guidance, whose null values a negative prompt replaces."""
        if self.guidance_scale:  # distilled: no unconditional estimate
            return ()
        return tuple(name for name in self.guided if isinstance(self.each[name], Caption | ClipText))

    @property
    def required_inputs(self) -> dict[str, int]:
        """Required inputs besides labels and captions, with their sizes: see `GenerativeModel`."""
        sizes = {}
        for name, condition in self.each.items():
            if isinstance(condition, ImageEmbedding):
                sizes[name] = condition.dimensions
            elif isinstance(condition, LowResImage):
                sizes[name] = condition.size
        return sizes

    @property
    def number(self) -> Number | None:
        """The condition on a number, if the model has it."""
        number = self.each.get("number")
        return number if isinstance(number, Number) else None

    @property
    def guidance_scale(self) -> GuidanceScale | None:
        """The condition on the scale of guidance that the network has learned, if the model has it."""
        scale = self.each.get("guidance_scale")
        return scale if isinstance(scale, GuidanceScale) else None

    @property
    def num_label_embeddings(self) -> int:
        """Rows of the network's table of labels, with one for the null class; 0: it has no table."""
        label = self.each.get("label")
        return label.classes + label.supports_guidance if isinstance(label, ClassLabel) else 0

    @property
    def classes(self) -> int:
        """Number of classes; 0: no condition uses labels."""
        labels = [one for one in self.each.values() if isinstance(one, ClassLabel | ClassToken)]
        return max([0, *(label.classes for label in labels)])

    def init(self, key: PRNGKey) -> Params:
        """Returns fresh parameters, by name of the condition."""
        keys = jax.random.split(key, len(self.each) + 1)
        params = {name: one.init(k) for (name, one), k in zip(self.each.items(), keys, strict=False)}
        return {name: value for name, value in params.items() if value}

    def encode(self, inputs: ConditionInputs) -> dict[str, Values]:
        """Returns the values of each condition."""
        keys = {name: fold_in_each(inputs.keys, i) for i, name in enumerate(self.each)}
        return {name: one.encode(inputs._replace(keys=keys[name])) for name, one in self.each.items()}

    def drop_randomly(self, values: Mapping[str, Values], keys: PRNGKeys) -> dict[str, Values]:
        """Drops each condition for a random fraction of the examples, independently: its `dropout`.

        Reference: Ho & Salimans 2022, algorithm 1.
        """
        masks = {
            name: jax.vmap(jax.random.bernoulli, (0, None))(fold_in_each(keys, i), one.dropout)
            for i, (name, one) in enumerate(self.each.items())
        }
        return self._drop(values, masks)

    def drop_all(self, values: Mapping[str, Values], count: int) -> dict[str, Values]:
        """Drops each condition that supports guidance, for all `count` examples."""
        return self._drop(values, dict.fromkeys(self.each, jnp.ones(count, bool)))

    def are_dropped(self, values: Mapping[str, Values], count: int) -> Mask:
        """Returns for which of `count` examples all conditions that support guidance have their null values."""
        null = self.drop_all(values, count)
        pairs = zip(*(jax.tree.leaves({name: v[name] for name in self.guided}) for v in (values, null)), strict=True)
        equal = [jnp.all(jnp.reshape(a == b, (count, -1)), axis=1) for a, b in pairs]
        return jnp.all(jnp.stack(equal), axis=0)

    def _drop(self, values: Mapping[str, Values], masks: Mapping[str, Mask]) -> dict[str, Values]:
        dropped = {
            name: one.drop(values[name], masks[name]) for name, one in self.each.items() if one.supports_guidance
        }
        return {**values, **dropped}

    def network_inputs(self, params: Params, values: Mapping[str, Values], clip: Clip | None) -> NetworkInputs:
        """Returns inputs of the network: embeddings, channels and contexts of all conditions, concatenated."""
        parts = [one.network_inputs(params.get(name, {}), values[name], clip) for name, one in self.each.items()]

        def concatenated(field: str, axis: int) -> Array | None:
            arrays = [value for part in parts if (value := getattr(part, field)) is not None]
            return jnp.concatenate(arrays, axis) if len(arrays) > 1 else arrays[0] if arrays else None

        axes = {"label": 0, "embedding": -1, "context": 1, "context_mask": 1, "channels": -1, "augment_label": -1}
        if any(part.context_mask is not None for part in parts):
            parts = [_with_mask(part) for part in parts]
        return NetworkInputs(**{field: concatenated(field, axis) for field, axis in axes.items()})


def _with_mask(inputs: NetworkInputs) -> NetworkInputs:
    """Returns inputs with a mask of the whole context where they have none."""
    if inputs.context is None or inputs.context_mask is not None:
        return inputs
    return inputs._replace(context_mask=jnp.ones(inputs.context.shape[:2], bool))


def make_conditions(
    config: ConfigDict, spec: ImageSpec, space: DataSpace, clip: Clip | None = None, *, masked: bool = False
) -> Conditions:
    """Builds the conditions of a config: its section `conditions`, `diffusion.class_conditional` and `data.augment`.

    Args:
      masked: whether the network accepts a mask of the context.

    Raises:
      UserError: an unknown condition, or fields that are invalid or do not fit.
    """
    each: dict[str, Condition] = {}
    if "class_conditional" in config.diffusion and (classes := classes_of(config, "diffusion", spec)):
        dropout = validate_probability("diffusion.label_dropout", config.diffusion.label_dropout)
        each["label"] = ClassLabel(classes, dropout)
    makers = {
        "label_token": functools.partial(_make_class_token, spec),
        "number": _make_number,
        "guidance_scale": _make_guidance_scale,
        "caption": functools.partial(_make_caption, config, clip),
        "clip_text": functools.partial(_make_clip_text, clip, masked),
        "image_embedding": functools.partial(_make_image_embedding, clip),
        "low_res_image": functools.partial(_make_low_res_image, spec, space),
        "masked_image": functools.partial(_make_masked_image, spec, space),
    }
    for name, section in dict(config.get("conditions", {})).items():
        if name not in makers:
            raise unknown("field of config.conditions", name, makers)
        if name in ("clip_text", "image_embedding") and clip is None:
            raise UserError(f"conditions.{name}: requires a trained CLIP; set --config.clip=WORKDIR")
        if name == "clip_text" and clip and clip.text is None:
            raise UserError("conditions.clip_text: requires a CLIP with a text encoder; set --config.clip=WORKDIR")
        if "dropout" in section:
            validate_probability(f"conditions.{name}.dropout", section.dropout)
        try:
            each[name] = makers[name](**section)
        except TypeError as error:
            raise UserError(f"config.conditions.{name}: {str(error).split('() ')[-1]}") from error
    if NonLeakyAugmentation.from_config(config):
        each["augment"] = AugmentLabel()
    _check_context(each, clip)
    if not {"caption", "clip_text"} & each.keys():
        return Conditions(each)
    return Conditions(each, (clip and clip.text) or text_of(config))


def _check_context(each: Mapping[str, Condition], clip: Clip | None) -> None:
    """Raises UserError for contexts of different widths."""
    widths = {name: width for name, one in each.items() if (width := one.context_width(clip))}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"conditions.{name} {width}" for name, width in widths.items())
        raise UserError(f"{listed}: context must have one width; set the width of each to that of the others")


def _make_class_token(spec: ImageSpec, **fields: Any) -> ClassToken:
    if not spec.classes:
        raise UserError("conditions.label_token: the data set does not have labels; remove it")
    return ClassToken(spec.classes, **fields)


def _make_number(**fields: Any) -> Number:
    condition = Number(**fields)
    validate_number("conditions.number.low", condition.low)
    validate_number("conditions.number.high", condition.high, low=condition.low, exclusive="low")
    validate_integer("conditions.number.width", condition.width, high=_MAX_TOKENS)
    return condition


def _make_guidance_scale(**fields: Any) -> GuidanceScale:
    condition = GuidanceScale(**fields)
    validate_number("conditions.guidance_scale.low", condition.low, low=0)
    validate_number("conditions.guidance_scale.high", condition.high, low=condition.low, exclusive="low")
    return condition


def _make_caption(config: ConfigDict, clip: Clip | None, dropout: float = 0.0, **fields: Any) -> Caption:
    text = (clip and clip.text) or text_of(config)
    shared = {"vocabulary": text.vocabulary, "dtype": dtype_of(config)}
    return Caption(text, make(CaptionEncoder, fields, "conditions.caption", **shared), dropout)


def _make_clip_text(clip: Clip | None, masked: bool, mask_padding: bool = False, **fields: Any) -> ClipText:
    assert clip is not None
    condition = ClipText(**fields, masked=masked or mask_padding, states_width=clip.width)
    validate_integer("conditions.clip_text.width", condition.width, low=0, high=_MAX_TOKENS)
    _check_choice("clip_text.null", condition.null, ("start", "empty"))
    return condition


def _make_image_embedding(clip: Clip | None, **fields: Any) -> ImageEmbedding:
    assert clip is not None
    condition = ImageEmbedding(clip.dimensions, **fields)
    validate_integer("conditions.image_embedding.tokens", condition.tokens, low=0, high=_MAX_TOKENS)
    if condition.tokens and condition.width < 1:
        raise UserError(
            f"conditions.image_embedding.tokens={condition.tokens}, conditions.image_embedding.width="
            f"{condition.width}: tokens must have the width of the context, at least 1; set the width, or tokens=0"
        )
    return condition


def _make_low_res_image(
    spec: ImageSpec,
    space: DataSpace,
    factor: int,
    degradation: str,
    level: bool = True,
    interpolation: str = "bilinear",
) -> LowResImage:
    degrade = lookup("conditions.low_res_image.degradation", augmentation, degradation)
    size = space.shape[0]
    if factor < 2 or size % factor or spec.size % (size // factor):
        raise UserError(
            f"conditions.low_res_image.factor={factor}: must be at least 2 and divide {size}, the size of x_t, of "
            f"data.image_size={spec.size}; choose a factor that does"
        )
    enlarge = {"bilinear": upsample_bilinear, "bicubic": upsample_bicubic}
    _check_choice("low_res_image.interpolation", interpolation, enlarge)
    return LowResImage(size // factor, size, degrade, level, enlarge[interpolation])


def _make_masked_image(spec: ImageSpec, space: DataSpace, **fields: Any) -> MaskedImage:
    condition = MaskedImage(space.shape, (spec.size, spec.size, spec.channels), **fields)
    validate_number("conditions.masked_image.full_mask_prob", condition.full_mask_prob, low=0, high=1)
    _check_choice("masked_image.ones", condition.ones, ("masked", "known"))
    _check_choice("masked_image.resize", condition.resize, ("any", "nearest"))
    return condition


def _check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise unknown(f"conditions.{field}", str(value), choices)
