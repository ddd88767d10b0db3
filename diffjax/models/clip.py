"""CLIP: pictures and captions embedded so that those that belong together are near (Radford et al. 2021).

With a section `diffusion` it is GLIDE's noised CLIP (Nichol et al. 2021, sec. 3.4), to guide a diffusion model by.
"""

import dataclasses
import math
from pathlib import Path

import jax
from jax import numpy as jnp

from diffjax.diffusion import sampling
from diffjax.diffusion.levels import Schedule
from diffjax.diffusion.noise import perturb
from diffjax.diffusion.time_sampling import Times
from diffjax.errors import UserError, checked_whole, unknown
from diffjax.models.diffusion import data_space
from diffjax.models.diffusion.data_space import Space
from diffjax.models.diffusion.process import make_schedule, make_times, time_scale
from diffjax.models.networks import check_buildable, dtype_of, make, text_of
from diffjax.models.pixels import to_unit_range
from diffjax.nn import clip as networks
from diffjax.nn.perceptual import as_rgb
from diffjax.nn.pretrained import clip_checkpoint
from diffjax.typing import Aux, Clip, ImageSpec, Objective, System, TextSpec, Variables

_ENCODERS = {"vit": networks.VisionTransformer, "resnet": networks.ModifiedResNet}


def build(config, spec: ImageSpec) -> System:
    """The CLIP of `config` for images of `spec`. Raises UserError for choices that do not exist or do not fit."""
    if config.train.accumulate > 1:
        raise UserError(
            "train.accumulate splits the batch, and CLIP tells each picture of a whole batch from all others: leave it "
            "at 1, and set model.remat where memory is short"
        )
    architecture, text = config.image_encoder.architecture, text_of(config)
    if architecture not in _ENCODERS:
        raise unknown("image_encoder.architecture", architecture, _ENCODERS)
    noising = _Noising.from_config(config.diffusion, spec) if "diffusion" in config else None
    given = {"dimensions": checked_whole("model.dimensions", config.model.dimensions), "dtype": dtype_of(config)}
    told = {"timesteps": config.diffusion.timesteps} if noising and architecture == "vit" else {}
    image_encoder = make(
        _ENCODERS[architecture], config.image_encoder, "image_encoder", but=("architecture",), **given, **told
    )
    text_encoder = make(
        networks.TextTransformer, config.text_encoder, "text_encoder", vocabulary=text.vocabulary, **given
    )
    return _system(image_encoder, text_encoder, text, spec, noising=noising)


def published(path: str | Path) -> tuple[System, Variables]:
    """The CLIP of a folder of published weights, which resizes images to its own size. Raises UserError."""
    found = clip_checkpoint.load(path)
    text = TextSpec(found.text_length, found.text_encoder.vocabulary)
    system = _system(found.image_encoder, found.text_encoder, text, ImageSpec(found.image_size, 3, 0), resizes=True)
    return system, {**found.variables, "frozen": {}}


@dataclasses.dataclass(frozen=True)
class _Noising:
    """What training does to its images, as a config's `diffusion` section chooses it."""

    schedule: Schedule
    times: Times
    space: Space  # of pixels, averaged down
    time_scale: float  # factor on the time that the encoder is given

    @classmethod
    def from_config(cls, config, spec: ImageSpec) -> "_Noising":
        """Raises UserError for choices that do not exist or do not fit."""
        schedule = make_schedule(config)
        space = data_space.pixels(spec, config.get("downsample", 1))
        return cls(schedule, make_times(config, schedule), space, time_scale(config, schedule))

    @property
    def side(self) -> int:
        """Of the images that are noised."""
        return self.space.shape[0]

    def smaller(self, images):
        """As they are before they are noised."""
        return self.space.encode({}, images)

    def __call__(self, images, keys, memory):
        """Images made smaller, each noised at a time of its own; those times; and the factors on the losses."""
        time_key, eps_key = sampling.split(keys)
        t, factor = jax.vmap(self.times.draw, (0, None, None))(time_key, self.schedule, memory)
        x0 = self.smaller(images)
        return jax.vmap(perturb)(x0, sampling.noise_of(eps_key, x0.shape[1:]), self.schedule(t)), t, factor


def _system(
    image_encoder,
    text_encoder,
    text: TextSpec,
    spec: ImageSpec,
    *,
    resizes: bool = False,
    noising: _Noising | None = None,
) -> System:
    """Of its two encoders; `resizes` to its own size whatever images it is given."""

    def init(key):
        image_key, text_key = jax.random.split(key)
        size, told = (noising.side, jnp.zeros(1)) if noising else (spec.size, None)
        image = image_encoder.init(image_key, jnp.zeros((1, size, size, spec.channels)), t=told)
        memory = noising.times.init(noising.schedule) if noising else {}
        params = {
            "image": image.pop("params"),
            "text": text_encoder.init(text_key, jnp.zeros((1, text.length), jnp.int32))["params"],
            "log_scale": jnp.asarray(math.log(1 / 0.07)),  # section 2.5
        }
        image |= {"times": memory} if memory else {}
        return {"params": {"model": params}, **image}  # and the statistics of batch norms, where there are any

    def collections(variables) -> dict:
        return {name: tree for name, tree in variables.items() if name not in ("params", "times", "frozen")}

    def embed_images(variables, images, t=None, mean=None, examples=None):
        """And what the norms remember, where `mean` is given: then it is training. `t` where images are noised."""
        own = {"params": variables["params"]["model"]["image"], **collections(variables)}
        told = None if t is None else noising.time_scale * (t - 1.0)  # as the diffusion models count
        found, remembered = image_encoder.apply(own, images, mean, examples, told, mutable=list(collections(variables)))
        return _unit(found), remembered

    def embed_texts(variables, tokens):
        return _unit(text_encoder.apply({"params": variables["params"]["model"]["text"]}, tokens)[1])

    def scale_of(variables, mean=lambda tree: tree):
        return jnp.exp(networks.limited(variables["params"]["model"]["log_scale"], mean))

    def loss(variables, batch, keys, moment):
        images, memory, t, factor = to_unit_range(batch["image"]), variables.get("times", {}), None, 1.0
        if noising:
            images, t, factor = noising(images, keys, memory)
        images, remembered = embed_images(variables, images, t, moment.mean, moment.batch_size)
        texts, scale = embed_texts(variables, batch["tokens"]), scale_of(variables, moment.mean)
        everyone = moment.gather((images, texts))
        value, nearest = networks.contrast(images, texts, *everyone, batch["index"], scale)
        tokens = moment.gather(batch["tokens"])  # equal captions have equal embeddings, so any of them is right
        right = (tokens[nearest] == batch["tokens"]).all(axis=1).astype(jnp.float32)
        metrics = {"accuracy": right, "scale": jnp.broadcast_to(scale, value.shape)}
        if memory:
            remembered = {**remembered, "times": noising.times.update(memory, t, value)}
        return factor * value, Aux(metrics, jax.lax.stop_gradient(remembered))

    def clip(variables) -> Clip:
        def embed(images):
            if resizes:
                shape = (len(images), spec.size, spec.size, 3)
                images = jax.image.resize(as_rgb(images, smallest=1), shape, "cubic", antialias=True).clip(-1, 1)
            if noising:  # the first level, of the least noise, is that of clean ones
                return embed_images(variables, noising.smaller(images), jnp.ones(len(images)))[0]
            return embed_images(variables, images)[0]

        def embed_noised(x, noise):
            return embed_images(variables, x, jnp.broadcast_to(noise.t, x.shape[:1]))[0]

        return Clip(
            embed_images=embed,
            embed_texts=lambda tokens: embed_texts(variables, tokens),
            text_states=lambda tokens: text_encoder.apply({"params": variables["params"]["model"]["text"]}, tokens)[0],
            scale=scale_of(variables),
            dimensions=image_encoder.dimensions,
            width=text_encoder.width,
            text=text,
            embed_noised=embed_noised if noising else None,
        )

    check_buildable(init, "config.image_encoder, config.text_encoder or config.data.image_size")
    told = {"gives": noising.side, "schedule": noising.schedule} if noising else {}
    return System(Objective(init, {"model": loss}), 0, clip=clip, text=text, **told)


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
