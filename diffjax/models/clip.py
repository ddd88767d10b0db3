"""CLIP: joint embeddings of images and captions, close for matching pairs.

With a section `diffusion` it is the noised CLIP of GLIDE, for CLIP guidance of a diffusion model.

References:
  Radford et al. 2021, "Learning transferable visual models from natural language supervision".
  Nichol et al. 2021, "GLIDE", section 4.4.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffjax.diffusion.noise import Noise, perturb
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.random import normal_each, split_each
from diffjax.diffusion.time_sampling import TimeSampler as TimeSampling
from diffjax.errors import UserError, unknown, validate_integer
from diffjax.models.base import ContrastiveModel
from diffjax.models.diffusion.data_space import PixelSpace, pixel_space
from diffjax.models.diffusion.process import make_schedule, make_times, time_scale
from diffjax.models.images import to_unit_range
from diffjax.models.networks import apply, check_buildable, dtype_of, make, text_of
from diffjax.nn import clip as networks
from diffjax.nn.layers import unit_norm
from diffjax.nn.perceptual import as_rgb
from diffjax.nn.pretrained import clip_checkpoint
from diffjax.typing import (
    Aux,
    Batch,
    Clip,
    Embeddings,
    Images,
    ImageSpec,
    LossFn,
    PRNGKey,
    PRNGKeys,
    Scalar,
    StepContext,
    TextSpec,
    Times,
    Tokens,
    Variables,
)

_ENCODERS = {"vit": networks.VisionTransformer, "resnet": networks.ModifiedResNet}
_INITIAL_LOG_SCALE = math.log(1 / 0.07)  # Radford et al. 2021, section 2.5


@dataclasses.dataclass(frozen=True)
class Noising:
    """Noise that training adds to images, from a config's section `diffusion`.

    Attributes:
      space: the pixels that are noised: images averaged down.
      time_scale: factor between timesteps and the encoder's time input.
    """

    schedule: Schedule
    times: TimeSampling
    space: PixelSpace
    time_scale: float

    @classmethod
    def from_config(cls, config: ConfigDict, spec: ImageSpec) -> "Noising":
        """Builds the noise of the section `config`. Raises UserError for an invalid field."""
        schedule = make_schedule(config)
        space = pixel_space(spec, config.get("downsample", 1))
        return cls(schedule, make_times(config, schedule), space, time_scale(config, schedule))

    @property
    def image_size(self) -> int:
        """Height and width of noised images."""
        return self.space.shape[0]

    def downsample(self, images: Images) -> Images:
        """Averages images down to the size at which they are noised."""
        return self.space.encode({}, images)

    def __call__(
        self, images: Images, keys: PRNGKeys, memory: Mapping[str, Any]
    ) -> tuple[Images, Times, Float[Array, " B"]]:
        """Returns noised downsampled images, their random timesteps, and the weights of their losses."""
        time_key, eps_key = split_each(keys)
        t, factor = jax.vmap(self.times.sample, (0, None, None))(time_key, self.schedule, memory)
        x0 = self.downsample(images)
        return jax.vmap(perturb)(x0, normal_each(eps_key, x0.shape[1:]), self.schedule(t)), t, factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipModel(ContrastiveModel):
    """An image encoder and a text encoder, trained with the contrastive loss. Published ones may have one of them.

    Attributes:
      image_encoder: None: captions only.
      text_encoder: None: images only.
      image_spec: size and channels of images.
      noising: noise that training adds; None: images are clean.
      resizes: whether images of any size are resized to the encoder's.
    """

    image_encoder: networks.VisionTransformer | networks.ModifiedResNet | None
    text_encoder: networks.TextTransformer | None
    image_spec: ImageSpec
    noising: Noising | None = None
    resizes: bool = False

    @property
    def output_size(self) -> int:
        """Height and width of noised images; 0 without noise."""
        return self.noising.image_size if self.noising else 0

    @property
    def noise_schedule(self) -> Schedule | None:
        """Noise schedule of training; None without noise."""
        return self.noising.schedule if self.noising else None

    @property
    def accepts_any_size(self) -> bool:
        return self.resizes or self.image_encoder is None

    def init(self, key: PRNGKey) -> Variables:
        image_key, text_key = jax.random.split(key)
        params: dict[str, Any] = {}
        statistics: dict[str, Any] = {}
        if self.image_encoder:
            size, t = (self.noising.image_size, jnp.zeros(1)) if self.noising else (self.image_spec.size, None)
            image = self.image_encoder.init(image_key, jnp.zeros((1, size, size, self.image_spec.channels)), t=t)
            params["image"], statistics = image["params"], {name: image[name] for name in image if name != "params"}
        if self.text_encoder:
            text = self.text_encoder.init(text_key, jnp.zeros((1, self._text.length), jnp.int32))
            params["text"] = text["params"]
        if len(params) == 2:
            params["log_scale"] = jnp.asarray(_INITIAL_LOG_SCALE)
        memory = self.noising.times.init(self.noising.schedule) if self.noising else {}
        return {"params": {"model": params}, **statistics, **({"times": memory} if memory else {})}

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {"model": self.loss}

    def loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext):
        """Returns the contrastive loss of each pair among those of all devices: figure 3."""
        if not (self.image_encoder and self.text_encoder):
            raise UserError("image_encoder, text_encoder: training compares both; add the section that is missing")
        images, memory, t, factor = to_unit_range(batch["image"]), variables.get("times", {}), None, 1.0
        if self.noising:
            images, t, factor = self.noising(images, keys, memory)
        images, updated = self._embed_images(variables, images, t, context.mean, context.batch_size)
        texts, scale = self._embed_texts(variables, batch["tokens"]), _scale(variables, context.mean)
        all_images, all_texts = context.gather((images, texts))
        value, nearest = networks.clip_loss(images, texts, all_images, all_texts, batch["index"], scale)
        # Equal captions have equal embeddings, so that any of them is a correct match.
        is_correct = (context.gather(batch["tokens"])[nearest] == batch["tokens"]).all(axis=1)
        metrics = {"accuracy": is_correct.astype(jnp.float32), "scale": jnp.broadcast_to(scale, value.shape)}
        if self.noising and t is not None and memory:
            updated = {**updated, "times": self.noising.times.update(memory, t, value)}
        return factor * value, Aux(metrics, jax.lax.stop_gradient(updated))

    def clip(self, variables: Variables) -> Clip:
        def encode(images: Images, return_features: bool = False) -> Array:
            if self.resizes:
                shape = (len(images), self.image_spec.size, self.image_spec.size, 3)
                images = jax.image.resize(as_rgb(images, min_side=1), shape, "cubic", antialias=True).clip(-1, 1)
            if self.noising:  # the first timestep has the least noise, and is used for clean images
                images, t = self.noising.downsample(images), jnp.ones(len(images))
                return self._project_images(variables, images, t, return_features=return_features)[0]
            return self._project_images(variables, images, return_features=return_features)[0]

        def embed_noised(x: Images, noise: Noise) -> Embeddings:
            return self._embed_images(variables, x, jnp.broadcast_to(jnp.ravel(noise.t), x.shape[:1]))[0]

        return Clip(
            embed_images=lambda images: unit_norm(encode(images), 0.0),
            embed_texts=lambda tokens: self._embed_texts(variables, tokens),
            text_states=lambda tokens: self._apply_text_encoder(variables, tokens)[0],
            scale=_scale(variables),
            dimensions=_dimensions(self.image_encoder or self._text_encoder),
            width=self.text_encoder.width if self.text_encoder else 0,
            text=self.text,
            embed_noised=embed_noised if self.noising else None,
            project_images=encode,
            project_texts=lambda tokens: self._apply_text_encoder(variables, tokens)[1],
            image_features=lambda images: encode(images, return_features=True),
        )

    @property
    def _image_encoder(self) -> networks.VisionTransformer | networks.ModifiedResNet:
        if self.image_encoder is None:
            raise UserError("image_encoder: this CLIP encodes captions only; use one with an image encoder")
        return self.image_encoder

    @property
    def _text_encoder(self) -> networks.TextTransformer:
        if self.text_encoder is None:
            raise UserError("text_encoder: this CLIP encodes images only; use one with a text encoder")
        return self.text_encoder

    @property
    def _text(self) -> TextSpec:
        assert self.text is not None
        return self.text

    def _embed_images(
        self,
        variables: Variables,
        images: Images,
        t: Times | None = None,
        mean: Callable[[Any], Any] | None = None,
        batch_size: int | None = None,
    ) -> tuple[Embeddings, Mapping[str, Any]]:
        """Returns `_project_images` with embeddings of unit norm."""
        embeddings, updated = self._project_images(variables, images, t, mean, batch_size)
        return unit_norm(embeddings, 0.0), updated

    def _project_images(
        self,
        variables: Variables,
        images: Images,
        t: Times | None = None,
        mean: Callable[[Any], Any] | None = None,
        batch_size: int | None = None,
        return_features: bool = False,
    ) -> tuple[Array, Mapping[str, Any]]:
        """Returns embeddings, and statistics of batch norms, updated if `mean` is given (in training).

        Args:
          t: timesteps of noised images, from 1.
          mean, batch_size: average over devices and global batch size, in training.
          return_features: return the tokens of patches, or feature maps [B, h, w, D], instead of embeddings.
        """
        others = ("params", "ema", "times", "frozen")
        statistics = {name: tree for name, tree in variables.items() if name not in others}
        time = None if t is None or self.noising is None else self.noising.time_scale * (t - 1.0)
        return self._image_encoder.apply(
            {"params": variables["params"]["model"]["image"], **statistics},
            images,
            mean,
            batch_size,
            time,
            return_features,
            mutable=list(statistics),
        )

    def _embed_texts(self, variables: Variables, tokens: Tokens) -> Embeddings:
        return unit_norm(self._apply_text_encoder(variables, tokens)[1], 0.0)

    def _apply_text_encoder(self, variables: Variables, tokens: Tokens) -> tuple[Float[Array, "B L W"], Embeddings]:
        return apply(self._text_encoder, variables["params"]["model"]["text"], tokens)


def build(config: ConfigDict, spec: ImageSpec) -> ClipModel:
    """Builds the CLIP of `config` for images of `spec`.

    Raises:
      UserError: an unknown choice, or one that does not fit the images.
    """
    if config.train.accumulate > 1:
        raise UserError(
            f"train.accumulate={config.train.accumulate}: must be 1 for system=clip, whose loss compares all pairs of "
            "a batch; set image_encoder.remat and text_encoder.remat to save memory"
        )
    for field in config.model:
        if field not in ("dimensions", "resize_images"):
            raise unknown("field of config.model", field, ("dimensions", "resize_images"))
    has_image, has_text = ("image_encoder" in config), ("text_encoder" in config)
    if not (has_image or has_text):
        raise UserError("image_encoder, text_encoder: a CLIP requires one of these sections at least; add both")
    noising = Noising.from_config(config.diffusion, spec) if "diffusion" in config else None
    can_be_zero = not (has_image and has_text) and (not has_image or config.image_encoder.architecture == "vit")
    dimensions = validate_integer("model.dimensions", config.model.dimensions, low=0 if can_be_zero else 1)
    shared = {"dimensions": dimensions, "dtype": dtype_of(config)}
    image_encoder = text_encoder = text = None
    if has_image:
        section, architecture = config.image_encoder, config.image_encoder.architecture
        if architecture not in _ENCODERS:
            raise unknown("image_encoder.architecture", architecture, _ENCODERS)
        time = {"timesteps": config.diffusion.timesteps} if noising and architecture == "vit" else {}
        encoder = _ENCODERS[architecture]
        image_encoder = make(encoder, section, "image_encoder", but=("architecture",), **shared, **time)
    if has_text:
        text = text_of(config)
        fields = {"vocabulary": text.vocabulary, **shared}
        text_encoder = make(networks.TextTransformer, config.text_encoder, "text_encoder", **fields)
    resizes = config.model.get("resize_images", False)
    if resizes and spec.channels != 3:
        raise UserError(
            f"model.resize_images=True: requires images of 3 channels, not {spec.channels}; set it to False"
        )
    return _checked(
        ClipModel(
            image_encoder=image_encoder,
            text_encoder=text_encoder,
            text=text,
            image_spec=spec,
            noising=noising,
            resizes=resizes,
        )
    )


def published(path: str | Path) -> tuple[ClipModel, Variables]:
    """Loads a folder of published weights as a CLIP that resizes images to its own size.

    Raises:
      UserError: missing or invalid files.
    """
    checkpoint = clip_checkpoint.load(path)
    text = checkpoint.text_encoder
    model = ClipModel(
        image_encoder=checkpoint.image_encoder,
        text_encoder=text,
        text=TextSpec(checkpoint.text_length, text.vocabulary) if text else None,
        image_spec=ImageSpec(checkpoint.image_size, 3, 0),
        resizes=True,
    )
    return _checked(model), {**checkpoint.variables, "frozen": {}}


def _checked(model: ClipModel) -> ClipModel:
    downsampled = ", config.diffusion.downsample" if model.noising else ""
    check_buildable(model, f"config.image_encoder, config.text_encoder{downsampled} or config.data.image_size")
    return model


def _dimensions(
    encoder: networks.VisionTransformer | networks.ModifiedResNet | networks.TextTransformer,
) -> int:
    """Returns the number of values of an encoder's embeddings."""
    return encoder.dimensions or encoder.width


def _scale(variables: Variables, mean: Callable[[Any], Any] = lambda tree: tree) -> Scalar:
    """Returns the scale of the logits, from its clamped logarithm; 1 for a CLIP with one encoder."""
    if "log_scale" not in variables["params"]["model"]:
        return jnp.ones(())
    return jnp.exp(networks.clamped_logit_scale(variables["params"]["model"]["log_scale"], mean))
