"""CLIP: pictures and captions embedded so that those that belong together are near (Radford et al. 2021)."""

import math
from pathlib import Path

import jax
from jax import numpy as jnp

from diffjax.errors import UserError, unknown
from diffjax.nn import clip as networks
from diffjax.nn import clip_file
from diffjax.nn.perceptual import as_rgb
from diffjax.systems.networks import check_buildable, dtype_of, make, text_of
from diffjax.systems.pixels import to_unit_range
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
    given = {"dimensions": config.model.dimensions, "dtype": dtype_of(config)}
    image_encoder = make(_ENCODERS[architecture], config.image_encoder, "image_encoder", but=("architecture",), **given)
    text_encoder = make(
        networks.TextTransformer, config.text_encoder, "text_encoder", vocabulary=text.vocabulary, **given
    )
    return _system(image_encoder, text_encoder, text, spec)


def published(path: str | Path) -> tuple[System, Variables]:
    """The CLIP of a folder of published weights, which resizes images to its own size. Raises UserError."""
    found = clip_file.load(path)
    text = TextSpec(found.text_length, found.text_encoder.vocabulary)
    system = _system(found.image_encoder, found.text_encoder, text, ImageSpec(found.image_size, 3, 0), resizes=True)
    return system, {**found.variables, "frozen": {}}


def _system(image_encoder, text_encoder, text: TextSpec, spec: ImageSpec, *, resizes: bool = False) -> System:
    """Of its two encoders; `resizes` to its own size whatever images it is given."""

    def init(key):
        image_key, text_key = jax.random.split(key)
        image = image_encoder.init(image_key, jnp.zeros((1, spec.size, spec.size, spec.channels)))
        params = {
            "image": image.pop("params"),
            "text": text_encoder.init(text_key, jnp.zeros((1, text.length), jnp.int32))["params"],
            "log_scale": jnp.asarray(math.log(1 / 0.07)),  # section 2.5
        }
        return {"params": {"model": params}, **image}  # and the statistics of batch norms, where there are any

    def collections(variables) -> dict:
        return {name: tree for name, tree in variables.items() if name not in ("params", "frozen")}

    def embed_images(variables, images, mean=None, examples=None):
        """And what the norms remember, where `mean` is given: then it is training."""
        own = {"params": variables["params"]["model"]["image"], **collections(variables)}
        found, remembered = image_encoder.apply(own, images, mean, examples, mutable=list(collections(variables)))
        return _unit(found), remembered

    def embed_texts(variables, tokens):
        return _unit(text_encoder.apply({"params": variables["params"]["model"]["text"]}, tokens)[1])

    def scale_of(variables, mean=lambda tree: tree):
        return jnp.exp(networks.limited(variables["params"]["model"]["log_scale"], mean))

    def loss(variables, batch, keys, moment):
        images, remembered = embed_images(variables, to_unit_range(batch["image"]), moment.mean, moment.batch_size)
        texts, scale = embed_texts(variables, batch["tokens"]), scale_of(variables, moment.mean)
        everyone = moment.gather((images, texts))
        value, right = networks.contrast(images, texts, *everyone, batch["index"], scale)
        metrics = {"accuracy": right, "scale": jnp.broadcast_to(scale, value.shape)}
        return value, Aux(metrics, jax.lax.stop_gradient(remembered))

    def clip(variables) -> Clip:
        def embed(images):
            if resizes:
                shape = (len(images), spec.size, spec.size, 3)
                images = jax.image.resize(as_rgb(images, smallest=1), shape, "cubic", antialias=True).clip(-1, 1)
            return embed_images(variables, images)[0]

        return Clip(
            embed_images=embed,
            embed_texts=lambda tokens: embed_texts(variables, tokens),
            text_states=lambda tokens: text_encoder.apply({"params": variables["params"]["model"]["text"]}, tokens)[0],
            scale=scale_of(variables),
            dimensions=image_encoder.dimensions,
            text=text,
        )

    check_buildable(init, "config.image_encoder, config.text_encoder")
    return System(Objective(init, {"model": loss}), 0, clip=clip, text=text)


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
