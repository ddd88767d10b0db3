"""Conditional diffusion models of 8x8 digits, as small as possible: mostly a DiT of one layer."""

import dataclasses
import functools

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax import models
from diffjax.models.base import Autoencoder, Model
from diffjax.models.images import to_unit_range
from diffjax.typing import Batch, Codec, Images, ImageSpec, Latents, PRNGKey, Variables
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
TEXT = {"tokenizer": "", "vocabulary": 300, "length": 6}
DIT = {"architecture": "dit", "patch": 4, "width": 8, "layers": 1, "heads": 2}
DROPOUT = 0.25
CONDITIONS = {
    "label_token": {"width": 8, "dropout": DROPOUT},
    "caption": {"width": 8, "layers": 1, "heads": 2, "dropout": DROPOUT},
    "clip_text": {"states": True, "embedding": True, "dropout": DROPOUT},
    "image_embedding": {"tokens": 2, "width": 8, "dropout": DROPOUT},
    "low_res_image": {"factor": 2, "degradation": "noise"},
    "masked_image": {},
    "number": {"high": 2.0, "width": 8},
}
PLAIN = {"sampler__guidance": 1.0, "data__image_size": 8, "text": TEXT, "diffusion__downsample": 1, "model": DIT}


@functools.cache
def clip() -> tuple[Model, Variables]:
    """Returns a frozen CLIP with random parameters."""
    encoders = {f"{kind}_encoder__layers": 1 for kind in ("image", "text")} | {"text_encoder__width": 8}
    return with_random_params(models.build(tiny.config("clip_shapes", **encoders), SPEC))


def config(*names: str, **changes) -> ConfigDict:
    """Returns the config of a diffusion model on pixels.

    Args:
      names: its conditions; "label" is the class label of the section `diffusion`.
      changes: as for `tiny.config`.
    """
    conditions = {name: dict(CONDITIONS[name]) for name in names if name != "label"}
    for change in [name for name in changes if name.startswith("conditions__")]:
        _, name, field = change.split("__")
        conditions[name][field] = changes.pop(change)
    labels = {"diffusion__class_conditional": True, "diffusion__label_dropout": DROPOUT} if "label" in names else {}
    return tiny.config("glide_base", **PLAIN | labels | {"conditions": conditions} | changes)


@functools.cache
def built(*names: str, **changes) -> tuple[ConfigDict, Model, Variables]:
    """Returns a config, its model, and random variables."""
    result = config(*names, **changes)
    return result, *with_random_params(models.build(result, SPEC, **parts(*names)))


def parts(*names: str) -> dict[str, tuple[Model, Variables]]:
    """Returns the trained models that conditions need."""
    return {"clip": clip()} if {"clip_text", "image_embedding"} & set(names) else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquaresAsChannels(Autoencoder):
    """A lossless autoencoder: its latents are squares of 2x2 pixels, times a scale."""

    losses = {}

    def init(self, key: PRNGKey) -> Variables:
        return {"params": {"scale": jnp.full((), 3.0)}}

    def codec(self, variables: Variables) -> Codec:
        scale = variables["params"]["scale"]

        def encode(x: Images) -> Latents:
            return scale * x.reshape(-1, 4, 2, 4, 2, 1).swapaxes(2, 3).reshape(-1, 4, 4, 4)

        def decode(z: Latents) -> Images:
            return (z / scale).reshape(-1, 4, 4, 2, 2, 1).swapaxes(2, 3).reshape(-1, 8, 8, 1)

        return Codec(encode, decode, (4, 4, 4), scale)


CODEC = SquaresAsChannels(), {"params": {"scale": jnp.full((), 3.0)}}


def latent(*names: str, **changes) -> ConfigDict:
    """Returns the config of a diffusion model on the latents of CODEC."""
    result = config(*names, **{"sampler__threshold": "none"} | changes)
    with result.unlocked():
        del result.diffusion.downsample, result.diffusion.crop
        result.system, result.codec = "latent", "@codec"
    return result


def prior(**changes) -> ConfigDict:
    """Returns the config of unCLIP's diffusion prior on the embeddings of `clip()`."""
    small = {"model": {"width": 8, "layers": 1, "heads": 2}, "conditions": {"clip_text": CONDITIONS["clip_text"]}}
    return tiny.config("unclip_prior", data__image_size=8, **small | changes)


def with_random_params(model: Model) -> tuple[Model, Variables]:
    """Returns a model and random variables; embeddings of tokens are large, so that captions have an effect."""
    shapes = model.variable_shapes
    variables = tiny.randomised(lambda key: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
    variables = {**variables, "frozen": model.frozen}

    def scaled(path, leaf):
        return 20 * leaf if any(getattr(part, "key", None) == "token" for part in path) else leaf

    return model, {**variables, "params": jax.tree_util.tree_map_with_path(scaled, variables["params"])}


def example_conditions(size: int = 6, seed: int = 0) -> Batch:
    """Returns conditions of samples: labels, captions, and original images."""
    batch = tiny.batch(size, seed)
    return {"label": batch["label"], "tokens": batch["tokens"], "original": to_unit_range(batch["image"])}


def keys(size: int = 6, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), size)
