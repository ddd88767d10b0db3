"""Conditioning inputs of a denoiser, besides x_t and t; a config's section `conditions` chooses any of them.

A class label, a caption, the CLIP embedding of an image (unCLIP), a low-resolution image (upsamplers), and a partly
masked image (inpainting). Conditions with `dropout` > 0 support classifier-free guidance.

References:
  Ho & Salimans 2022, "Classifier-free diffusion guidance".
  Nichol et al. 2021, "GLIDE".
  Ramesh et al. 2022, "Hierarchical text-conditional image generation with CLIP latents" (unCLIP).
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from diffjax.diffusion.random import fold_in_each, split_each
from diffjax.errors import UserError, unknown, validate_integer, validate_number
from diffjax.models.diffusion import augmentation
from diffjax.models.diffusion.data_space import DataSpace, downsample_mask
from diffjax.models.diffusion.inpainting_masks import random_mask
from diffjax.models.images import downsample, unit_variance, upsample_bilinear
from diffjax.models.networks import apply, classes_of, dtype_of, make, text_of, validate_probability
from diffjax.nn.caption_encoder import CaptionEncoder
from diffjax.nn.layers import Dense, timestep_embedding
from diffjax.registry import lookup
from diffjax.typing import NO_TOKEN, Clip, Embeddings, Images, ImageSpec, Labels, PRNGKey, PRNGKeys, TextSpec

Params = dict[str, Any]
Values = Any  # tree of [B, ...]
Mask = Bool[Array, "B"]

_MAX_TOKENS = 100_000  # of context per embedding


class ConditionInputs(NamedTuple):
    """Inputs that conditions are computed from.

    Attributes:
      conditions: arrays [B, ...] by name. In training "label", "tokens" and "original", the images [-1, 1]. For
        sampling the same, where "image_embedding" (unit norm), "low_res_image", or "image" and "mask" (1: known) take
        the place of "original".
      clip: frozen CLIP; None: no condition uses one.
      encode_image: images to the data space.
      keys: one per example.
      augmentation_level: level [0, 1] of conditioning augmentation; None: random per example, as in training.
    """

    conditions: Mapping[str, Array]
    clip: Clip | None
    encode_image: Callable[[Images], Array]
    keys: PRNGKeys
    augmentation_level: Array | float | None


class NetworkInputs(NamedTuple):
    """Conditioning inputs that a denoising network accepts."""

    label: Labels | None = None
    embedding: Embeddings | None = None  # added to the timestep's embedding
    context: Float[Array, "B L W"] | None = None  # for cross-attention
    context_mask: Bool[Array, "B L"] | None = None  # True where the context has a token
    channels: Float[Array, "B H W C"] | None = None  # concatenated with x_t


class Condition(abc.ABC):
    """A conditioning input.

    Attributes:
      dropout: fraction of training examples for which it is dropped.
    """

    dropout: float = 0.0

    @property
    def supports_guidance(self) -> bool:
        """True if training drops the condition, so that samples can be guided towards it."""
        return self.dropout > 0

    def init(self, key: PRNGKey) -> Params:
        """Returns fresh parameters."""
        return {}

    @abc.abstractmethod
    def encode(self, inputs: ConditionInputs) -> Values:
        """Returns the values of the condition, before any trained parameter."""

    def drop(self, values: Values, mask: Mask) -> Values:
        """Returns values with the null condition where `mask` is True."""
        raise NotImplementedError(f"{type(self).__name__} does not support guidance")

    @abc.abstractmethod
    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        """Returns the values as the network accepts them."""

    def context_width(self, clip: Clip | None) -> int:
        """Width of the context; 0: the condition has none."""
        return 0


@dataclasses.dataclass(frozen=True)
class ClassLabel(Condition):
    """Class label; the last row of the network's embedding table is the null class."""

    classes: int
    dropout: float = 0.0

    def encode(self, inputs: ConditionInputs) -> Labels:
        return inputs.conditions["label"]

    def drop(self, values: Labels, mask: Mask) -> Labels:
        return jnp.where(mask, self.classes, values)

    def network_inputs(self, params: Params, values: Labels, clip: Clip | None) -> NetworkInputs:
        return NetworkInputs(label=values)


@dataclasses.dataclass(frozen=True)
class ClassToken(Condition):
    """Class label as one token of context: Rombach et al. 2022, appendix E."""

    classes: int
    width: int
    dropout: float = 0.0

    def init(self, key: PRNGKey) -> Params:
        return {"table": jax.random.normal(key, (self.classes + 1, self.width))}

    def encode(self, inputs: ConditionInputs) -> Labels:
        return inputs.conditions["label"]

    def drop(self, values: Labels, mask: Mask) -> Labels:
        return jnp.where(mask, self.classes, values)

    def network_inputs(self, params: Params, values: Labels, clip: Clip | None) -> NetworkInputs:
        return NetworkInputs(context=params["table"][values][:, None])

    def context_width(self, clip: Clip | None) -> int:
        return self.width


@dataclasses.dataclass(frozen=True)
class Caption(Condition):
    """Caption, encoded by a transformer that is trained with the denoiser: GLIDE, section 3.1.

    Its states are context, and the last one is an embedding too. The null caption has no tokens.
    """

    text: TextSpec
    encoder: CaptionEncoder
    dropout: float = 0.0

    def init(self, key: PRNGKey) -> Params:
        return dict(self.encoder.init(key, jnp.zeros((1, self.text.length), jnp.int32))["params"])

    def encode(self, inputs: ConditionInputs) -> Values:
        null = jnp.full((len(inputs.keys), self.text.length), NO_TOKEN)
        return inputs.conditions.get("tokens", null)

    def drop(self, values: Values, mask: Mask) -> Values:
        return jnp.where(mask[:, None], NO_TOKEN, values)

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        states = apply(self.encoder, params, values)
        return NetworkInputs(embedding=states[:, -1], context=states)

    def context_width(self, clip: Clip | None) -> int:
        return self.encoder.width


@dataclasses.dataclass(frozen=True)
class ClipText(Condition):
    """Caption, encoded by a frozen CLIP: Stable Diffusion; unCLIP's prior. The null caption is the start token alone.

    Attributes:
      states: whether the states of tokens are context.
      embedding: whether the embedding of the caption is an embedding.
      masked: whether the network accepts a mask of the context.
    """

    states: bool = True
    embedding: bool = False
    dropout: float = 0.0
    masked: bool = False

    def encode(self, inputs: ConditionInputs) -> Values:
        if "tokens" not in inputs.conditions:
            raise UserError("this run is conditioned on captions: pass --prompt=TEXT too")
        return inputs.conditions["tokens"]

    def drop(self, values: Values, mask: Mask) -> Values:
        is_later = jnp.arange(values.shape[1])[None, :] > 0
        return jnp.where(mask[:, None] & is_later, NO_TOKEN, values)

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        assert clip is not None
        return NetworkInputs(
            embedding=unit_variance(clip.embed_texts(values)) if self.embedding else None,
            context=clip.text_states(values) if self.states else None,
            context_mask=values != NO_TOKEN if self.states and self.masked else None,
        )

    def context_width(self, clip: Clip | None) -> int:
        return clip.width if clip and self.states else 0


@dataclasses.dataclass(frozen=True)
class ImageEmbedding(Condition):
    """CLIP embedding of an image, as an embedding and as tokens of context: unCLIP, section 2.1.

    The null condition is a learned embedding.

    Attributes:
      dimensions: dimension of the embedding.
      tokens: number of tokens of context.
      width: width of the context.
    """

    dimensions: int
    tokens: int = 4
    width: int = 0
    dropout: float = 0.0

    def init(self, key: PRNGKey) -> Params:
        params = {"null": jnp.zeros((self.dimensions,))}
        if not self.tokens:
            return params
        return params | {"tokens": self._to_tokens.init(key, jnp.zeros((1, self.dimensions)))["params"]}

    @property
    def _to_tokens(self) -> Dense:
        return Dense(self.tokens * self.width, "torch")

    def encode(self, inputs: ConditionInputs) -> Values:
        embedding = inputs.conditions.get("image_embedding")
        if embedding is None:
            original = _original(inputs.conditions)
            assert inputs.clip is not None
            embedding = inputs.clip.embed_images(original)
        return {"embedding": embedding, "present": jnp.ones(len(embedding), bool)}

    def drop(self, values: Values, mask: Mask) -> Values:
        return {**values, "present": values["present"] & ~mask}

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        embedding = jnp.where(values["present"][:, None], unit_variance(values["embedding"]), params["null"][None, :])
        if not self.tokens:
            return NetworkInputs(embedding=embedding)
        tokens = apply(self._to_tokens, params["tokens"], embedding)
        return NetworkInputs(embedding=embedding, context=tokens.reshape(len(tokens), self.tokens, self.width))

    def context_width(self, clip: Clip | None) -> int:
        return self.width if self.tokens else 0


@dataclasses.dataclass(frozen=True)
class LowResImage(Condition):
    """Low-resolution image, with conditioning augmentation at a level that the network receives.

    In training, levels are uniform in [0, 1]. References: Ho et al. 2021, "Cascaded diffusion models"; unCLIP, section
    2.3.

    Attributes:
      size: height and width of the image.
      data_size: height and width of x_t.
      degrade: augmentation of one image, a function of augmentation.py.
    """

    size: int
    data_size: int
    degrade: Callable[[PRNGKey, Array, Array], Array]

    _FREQUENCIES = 32

    def encode(self, inputs: ConditionInputs) -> Values:
        level_keys, keys = split_each(inputs.keys)
        image = inputs.conditions.get("low_res_image")
        if image is None:
            original = _original(inputs.conditions)
            image = downsample(original, original.shape[1] // self.size)
        level = jax.vmap(jax.random.uniform)(level_keys)
        if inputs.augmentation_level is not None:
            level = jnp.full_like(level, inputs.augmentation_level)
        return {"image": jax.vmap(self.degrade)(keys, image, level), "level": level}

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        level = timestep_embedding(1000.0 * values["level"], self._FREQUENCIES, convention="adm")
        image = upsample_bilinear(values["image"], self.data_size // self.size)
        return NetworkInputs(embedding=level, channels=image)


@dataclasses.dataclass(frozen=True)
class MaskedImage(Condition):
    """Image with a masked part, and the mask, for inpainting: GLIDE, section 4.3; latent diffusion.

    In training, masks are random. Samples without an image have everything masked.

    Attributes:
      shape: shape of x_t.
      full_mask_prob: fraction of training examples with everything masked.
    """

    shape: tuple[int, ...]
    full_mask_prob: float = 0.25

    def encode(self, inputs: ConditionInputs) -> Values:
        conditions, count = inputs.conditions, len(inputs.keys)
        if "mask" in conditions:
            image, known = conditions["image"], conditions["mask"][..., :1]
        elif "original" in conditions:
            image = conditions["original"]
            mask = functools.partial(random_mask, side=image.shape[1], full_mask_prob=self.full_mask_prob)
            known = 1.0 - jax.vmap(mask)(inputs.keys)
        else:
            return {"image": jnp.zeros((count, *self.shape)), "masked": jnp.ones((count, *self.shape[:2], 1))}
        image = inputs.encode_image(image * known)
        return {"image": image, "masked": 1.0 - downsample_mask(known, self.shape[0])}

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        return NetworkInputs(channels=jnp.concatenate([values["image"], values["masked"]], axis=-1))


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
        return any(condition.supports_guidance for condition in self.each.values())

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

        axes = {"label": 0, "embedding": -1, "context": 1, "context_mask": 1, "channels": -1}
        return NetworkInputs(**{field: concatenated(field, axis) for field, axis in axes.items()})


def make_conditions(
    config: ConfigDict, spec: ImageSpec, space: DataSpace, clip: Clip | None = None, *, masked: bool = False
) -> Conditions:
    """Builds the conditions of a config: its section `conditions`, and `diffusion.class_conditional`.

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
        "caption": functools.partial(_make_caption, config, clip),
        "clip_text": functools.partial(ClipText, masked=masked),
        "image_embedding": functools.partial(_make_image_embedding, clip),
        "low_res_image": functools.partial(_make_low_res_image, spec, space),
        "masked_image": functools.partial(_make_masked_image, space),
    }
    for name, section in dict(config.get("conditions", {})).items():
        if name not in makers:
            raise unknown("field of config.conditions", name, makers)
        if name in ("clip_text", "image_embedding") and clip is None:
            raise UserError(f"conditions.{name}: requires a trained CLIP; set --config.clip=WORKDIR")
        if "dropout" in section:
            validate_probability(f"conditions.{name}.dropout", section.dropout)
        try:
            each[name] = makers[name](**section)
        except TypeError as error:
            raise UserError(f"config.conditions.{name}: {str(error).split('() ')[-1]}") from error
    _check_context(each, clip)
    if not {"caption", "clip_text"} & each.keys():
        return Conditions(each)
    return Conditions(each, clip.text if clip else text_of(config))


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


def _make_caption(config: ConfigDict, clip: Clip | None, dropout: float = 0.0, **fields: Any) -> Caption:
    text = clip.text if clip else text_of(config)
    shared = {"vocabulary": text.vocabulary, "dtype": dtype_of(config)}
    return Caption(text, make(CaptionEncoder, fields, "conditions.caption", **shared), dropout)


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


def _make_low_res_image(spec: ImageSpec, space: DataSpace, factor: int, degradation: str) -> LowResImage:
    degrade = lookup("conditions.low_res_image.degradation", augmentation, degradation).bind()
    size = space.shape[0]
    if factor < 2 or size % factor or spec.size % (size // factor):
        raise UserError(
            f"conditions.low_res_image.factor={factor}: must be at least 2 and divide {size}, the size of x_t, of "
            f"data.image_size={spec.size}; choose a factor that does"
        )
    return LowResImage(size // factor, size, degrade)


def _make_masked_image(space: DataSpace, **fields: Any) -> MaskedImage:
    condition = MaskedImage(space.shape, **fields)
    validate_number("conditions.masked_image.full_mask_prob", condition.full_mask_prob, low=0, high=1)
    return condition


def _original(conditions: Mapping[str, Array]) -> Images:
    if "original" not in conditions:
        raise UserError("this run is a stage conditioned on an image: pass --image=FILE, or sample the full pipeline")
    return conditions["original"]
