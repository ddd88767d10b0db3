"""Kinds of conditioning inputs of a denoiser, besides x_t and t: a class per kind.

References:
  Ho & Salimans 2022, "Classifier-free diffusion guidance".
  Nichol et al. 2021, "GLIDE".
  Ramesh et al. 2022, "Hierarchical text-conditional image generation with CLIP latents" (unCLIP).
  Karras et al. 2022, "Elucidating the design space of diffusion-based generative models" (EDM).
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from diffjax.diffusion.random import split_each
from diffjax.errors import UserError
from diffjax.models.condition_inputs import ConditionInputs
from diffjax.models.diffusion.data_space import downsample_mask
from diffjax.models.diffusion.inpainting_masks import random_mask
from diffjax.models.diffusion.nonleaky_augmentation import NUM_LABELS
from diffjax.models.images import downsample, unit_variance, upsample_bilinear
from diffjax.models.networks import apply
from diffjax.nn.caption_encoder import CaptionEncoder
from diffjax.nn.layers import Dense, LayerNorm, timestep_embedding
from diffjax.registry import Choice
from diffjax.typing import NO_TOKEN, Clip, Embeddings, Images, Labels, PRNGKey, TextSpec, Tokens

Params = dict[str, Any]
Values = Any  # tree of [B, ...]
Mask = Bool[Array, " B"]


class NetworkInputs(NamedTuple):
    """Conditioning inputs that a denoising network accepts."""

    label: Labels | None = None
    embedding: Embeddings | None = None  # added to the timestep's embedding
    context: Float[Array, "B L W"] | None = None  # for cross-attention
    context_mask: Bool[Array, "B L"] | None = None  # True where the context has a token
    channels: Float[Array, "B H W C"] | None = None  # concatenated with x_t
    augment_label: Float[Array, "B 9"] | None = None  # added to the sinusoidal embedding of the timestep


class Condition(abc.ABC):
    """A conditioning input.

    Attributes:
      dropout: fraction of training examples for which it is dropped.
    """

    dropout: float = 0.0

    reads_image: ClassVar[bool] = False  # whether it is computed from the training image

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
class Number(Condition):
    """A real number, as an embedding: a hidden layer of a network of two, whose last is the network's linear map.

    Training reads the number of each image from the data. In samples it is the sampling setting of this name.

    Attributes:
      low: smallest number.
      high: largest number.
      width: width of the hidden layer.
    """

    low: float = 0.0
    high: float = 1.0
    width: int = 128

    @property
    def _hidden(self) -> Dense:
        return Dense(self.width, "torch")

    def init(self, key: PRNGKey) -> Params:
        return {"hidden": self._hidden.init(key, jnp.zeros((1, 1)))["params"]}

    def encode(self, inputs: ConditionInputs) -> Values:
        if "number" not in inputs.conditions:
            raise UserError("this run is conditioned on a number: pass --number=NUMBER, or set data.number")
        return inputs.conditions["number"]

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        return NetworkInputs(embedding=nn.silu(apply(self._hidden, params["hidden"], values[:, None])))


@dataclasses.dataclass(frozen=True)
class GuidanceScale(Condition):
    """Scale s of the guidance that is distilled in a student, or that a mean flow learns, as an embedding.

    Training samples it uniformly, for each example. In samples it is the sampling setting `guidance`. The network maps
    the sinusoidal embedding of 1000 (s - 1), 256 values, and adds it to that of the time, as published latent
    consistency models do. So a student has all weights of its teacher, and a few more.

    Reference: Meng et al. 2023, "On distillation of guided diffusion models", section 3.1; Luo et al. 2023, "Latent
    consistency models", section 4.2.
    """

    low: float = 1.0
    high: float = 4.0
    WIDTH = 256

    def encode(self, inputs: ConditionInputs) -> Values:
        sample = functools.partial(jax.random.uniform, minval=self.low, maxval=self.high)
        sampled = inputs.conditions.get("guidance_scale")
        return jax.vmap(sample)(inputs.keys) if sampled is None else sampled

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        return NetworkInputs(augment_label=timestep_embedding(1000.0 * (values - 1.0), self.WIDTH, convention="ddpm"))


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
    """Caption, encoded by a transformer that is trained with the denoiser: GLIDE, section 4.1.

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
    """Caption, encoded by a frozen CLIP: Stable Diffusion; unCLIP's prior; Karlo's decoder.

    Attributes:
      states: whether the states of tokens are context.
      embedding: whether the embedding of the caption is an embedding.
      masked: whether padding is not attended to.
      unit_length: whether the embedding is scaled to unit length, times sqrt(dimensions); otherwise it is what the
        CLIP's last layer outputs.
      null: null caption: the "start" token alone, which no caption equals; or the "empty" caption, start and end, as in
        published models.
      width: width of the context, to which a linear layer and a layer norm map the states; 0: that of the states.
      states_width: width of the states.
    """

    states: bool = True
    embedding: bool = False
    dropout: float = 0.0
    masked: bool = False
    null: Literal["start", "empty"] = "start"
    unit_length: bool = True
    width: int = 0
    states_width: int = 0

    def init(self, key: PRNGKey) -> Params:
        if not (self.states and self.width):
            return {}
        linear = self._linear.init(key, jnp.zeros((1, self.states_width)))["params"]
        return {"linear": linear, "norm": self._norm.init(key, jnp.zeros((1, self.width)))["params"]}

    @property
    def _linear(self) -> Dense:
        return Dense(self.width, "torch")

    @property
    def _norm(self) -> nn.Module:
        return LayerNorm(1e-5)

    def encode(self, inputs: ConditionInputs) -> Values:
        if "tokens" not in inputs.conditions:
            raise UserError("this run is conditioned on captions: pass --prompt=TEXT too")
        names = ("tokens", "text_states", "text_embedding")
        return {name: inputs.conditions[name] for name in names if name in inputs.conditions}

    def drop(self, values: Values, mask: Mask) -> Values:
        tokens = values["tokens"]
        return {**values, "tokens": jnp.where(mask[:, None], _null_tokens(tokens, self.null), tokens)}

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        assert clip is not None
        tokens = values["tokens"]
        embed = functools.partial(_stored_or_encoded, values, null=_null_tokens(tokens, self.null))
        return NetworkInputs(
            embedding=self._embedding(values, clip) if self.embedding else None,
            context=self._context(params, embed("text_states", clip.text_states)) if self.states else None,
            context_mask=tokens != NO_TOKEN if self.states and self.masked else None,
        )

    def _context(self, params: Params, states: Float[Array, "B L S"]) -> Float[Array, "B L W"]:
        if not self.width:
            return states
        return apply(self._norm, params["norm"], apply(self._linear, params["linear"], states))

    def _embedding(self, values: Values, clip: Clip) -> Embeddings:
        tokens = values["tokens"]
        if self.unit_length:
            null = _null_tokens(tokens, self.null)
            return unit_variance(_stored_or_encoded(values, "text_embedding", clip.embed_texts, null=null))
        assert clip.project_texts is not None
        return clip.project_texts(tokens)  # stored embeddings are of unit length

    def context_width(self, clip: Clip | None) -> int:
        return (self.width or clip.width) if clip and self.states else 0


@dataclasses.dataclass(frozen=True)
class ImageEmbedding(Condition):
    """CLIP embedding of an image, as an embedding and as tokens of context: unCLIP, section 2.1.

    The null condition is a learned embedding.

    Attributes:
      dimensions: dimension of the embedding.
      tokens: number of tokens of context.
      width: width of the context.
      unit_length: whether the embedding is of unit length, and is multiplied by sqrt(dimensions); otherwise it is what
        the CLIP's last layer outputs.
    """

    dimensions: int
    tokens: int = 4
    width: int = 0
    dropout: float = 0.0
    unit_length: bool = True

    reads_image = True

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
            embed = inputs.clip.embed_images if self.unit_length else inputs.clip.project_images
            assert embed is not None
            embedding = embed(original)
        return {"embedding": embedding, "present": jnp.ones(len(embedding), bool)}

    def drop(self, values: Values, mask: Mask) -> Values:
        return {**values, "present": values["present"] & ~mask}

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        embedding = unit_variance(values["embedding"]) if self.unit_length else values["embedding"]
        embedding = jnp.where(values["present"][:, None], embedding, params["null"][None, :])
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
      degrade: augmentation of one image, a choice of augmentation.py.
      level: whether the network receives the level.
      enlarge: maps images [B, size, size, C] and a factor to images of factor times the sides.
    """

    size: int
    data_size: int
    degrade: Choice
    level: bool = True
    enlarge: Callable[[Images, int], Images] = upsample_bilinear

    reads_image = True
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
        return {"image": jax.vmap(self.degrade.bind())(keys, image, level), "level": level}

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        image = self.enlarge(values["image"], self.data_size // self.size)
        if not self.level:
            return NetworkInputs(channels=image)
        level = timestep_embedding(1000.0 * values["level"], self._FREQUENCIES, convention="adm")
        return NetworkInputs(embedding=level, channels=image)


@dataclasses.dataclass(frozen=True)
class MaskedImage(Condition):
    """Image with a masked part, and the mask, for inpainting: GLIDE, section 4.3; latent diffusion.

    In training, masks are random. Samples without an image have everything masked.

    The channels are the masked image, then the mask; with x_t of C channels, the network's input is [x_t (C), image
    (C), mask (1)]. GLIDE's network has this order. Stable Diffusion's has [x_t, mask, image]: its input channels in the
    order 0, ..., C - 1, C + 1, ..., 2C, C are those of this network. Channels of a low-resolution image come before
    these, as conditions are in alphabetical order; GLIDE's upsampler for inpainting has them last: [x_t (C), image (C),
    mask, low-resolution image (C)], and its channels 0, ..., C - 1, 2C + 1, ..., 3C, C, ..., 2C are those of this one.

    Attributes:
      shape: shape of x_t.
      image_shape: shape of images.
      full_mask_prob: fraction of training examples with everything masked.
      ones: region where the mask is 1: "masked" (Stable Diffusion) or "known" (GLIDE).
      resize: mask of a position of x_t: "any", masked if any of its pixels is, or "nearest", as its first pixel (Stable
        Diffusion).
    """

    shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    full_mask_prob: float = 0.25
    ones: Literal["masked", "known"] = "masked"
    resize: Literal["any", "nearest"] = "any"

    reads_image = True

    def encode(self, inputs: ConditionInputs) -> Values:
        assert inputs.encode_image is not None
        conditions, count = inputs.conditions, len(inputs.keys)
        if "mask" in conditions:
            image, known = conditions["image"], conditions["mask"][..., :1]
        elif "original" in conditions:
            image = conditions["original"]
            mask = functools.partial(random_mask, side=image.shape[1], full_mask_prob=self.full_mask_prob)
            known = 1.0 - jax.vmap(mask)(inputs.keys)
        else:
            nothing = inputs.encode_image(jnp.zeros((1, *self.image_shape)))
            image = jnp.broadcast_to(nothing, (count, *self.shape))
            return {"image": image, "masked": jnp.ones((count, *self.shape[:2], 1))}
        image = inputs.encode_image(image * known)
        factor = known.shape[1] // self.shape[0]
        small = known[:, ::factor, ::factor] if self.resize == "nearest" else downsample_mask(known, self.shape[0])
        return {"image": image, "masked": 1.0 - small}

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        mask = values["masked"] if self.ones == "masked" else 1.0 - values["masked"]
        return NetworkInputs(channels=jnp.concatenate([values["image"], mask], axis=-1))


@dataclasses.dataclass(frozen=True)
class AugmentLabel(Condition):
    """Parameters of non-leaky augmentation: EDM, appendix F.2. Samples have zeros, so they are not transformed."""

    def encode(self, inputs: ConditionInputs) -> Values:
        zeros = jnp.zeros((len(inputs.keys), NUM_LABELS))
        return inputs.conditions.get("augment_label", zeros)

    def network_inputs(self, params: Params, values: Values, clip: Clip | None) -> NetworkInputs:
        return NetworkInputs(augment_label=values)


def _null_tokens(tokens: Tokens, kind: Literal["start", "empty"]) -> Tokens:
    """Returns the tokens of null captions [B, L]: its start token, and for "empty" its last, end."""
    place = jnp.arange(tokens.shape[1])[None, :]
    start = jnp.where(place > 0, NO_TOKEN, tokens)
    if kind == "start":
        return start
    last = jnp.sum(tokens != NO_TOKEN, axis=1, keepdims=True) - 1
    return jnp.where(place == 1, jnp.take_along_axis(tokens, last, axis=1), start)


def _stored_or_encoded(
    values: Mapping[str, Array], name: str, encode: Callable[[Tokens], Array], *, null: Tokens
) -> Array:
    """Returns what `encode` computes of tokens: of stored values, only the `null` captions [B, L] are computed."""
    tokens = values["tokens"]
    if name not in values:
        return encode(tokens)
    is_null = (tokens == null).all(axis=1).reshape(-1, *[1] * (values[name].ndim - 1))
    return jnp.where(is_null, encode(null[:1]), values[name])


def _original(conditions: Mapping[str, Array]) -> Images:
    if "original" not in conditions:
        raise UserError("this run is a stage conditioned on an image: pass --image=FILE, or sample the full pipeline")
    return conditions["original"]
