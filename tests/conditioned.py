"""Diffusion models of 8x8 digits that are told something, as tiny as they can be: a DiT of one layer, mostly."""

import functools

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax import models
from diffjax.models.pixels import to_unit_range
from diffjax.typing import Batch, Codec, ImageSpec, Objective, System, Variables
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
    "smaller_image": {"factor": 2, "degradation": "noise"},
    "erased_image": {},
}
PLAIN = {"sampler__guidance": 1.0, "data__image_size": 8, "text": TEXT, "diffusion__downsample": 1, "model": DIT}


@functools.cache
def clip() -> tuple[System, Variables]:
    """A frozen CLIP, untrained."""
    encoders = {f"{kind}_encoder__layers": 1 for kind in ("image", "text")} | {"text_encoder__width": 8}
    return randomised(models.build(tiny.config("clip_shapes", **encoders), SPEC))


def config(*names: str, **changes) -> ConfigDict:
    """Of a diffusion of pixels that is told what `names` say: conditions, or "label"; `changes` as tiny.config's."""
    told = {name: dict(CONDITIONS[name]) for name in names if name != "label"}
    for change in [name for name in changes if name.startswith("conditions__")]:
        _, name, field = change.split("__")
        told[name][field] = changes.pop(change)
    labels = {"diffusion__class_conditional": True, "diffusion__label_dropout": DROPOUT} if "label" in names else {}
    return tiny.config("glide_base", **PLAIN | labels | {"conditions": told} | changes)


@functools.cache
def built(*names: str, **changes) -> tuple[ConfigDict, System, Variables]:
    """Such a diffusion with random parameters."""
    made = config(*names, **changes)
    return made, *randomised(models.build(made, SPEC, **parts(*names)))


def parts(*names: str) -> dict[str, tuple[System, Variables]]:
    return {"clip": clip()} if {"clip_text", "image_embedding"} & set(names) else {}


def folding(variables) -> Codec:
    """Squares of 2x2 pixels as channels, times a scale: nothing is lost."""
    scale = variables["params"]["scale"]

    def encode(x):
        return scale * x.reshape(-1, 4, 2, 4, 2, 1).swapaxes(2, 3).reshape(-1, 4, 4, 4)

    def decode(z):
        return (z / scale).reshape(-1, 4, 4, 2, 2, 1).swapaxes(2, 3).reshape(-1, 8, 8, 1)

    return Codec(encode, decode, (4, 4, 4), scale)


CODEC = System(Objective(lambda key: {}, {}), 0, codec=folding), {"params": {"scale": jnp.full((), 3.0)}}


def latent(*names: str, **changes) -> ConfigDict:
    """Of a diffusion of the latents of CODEC."""
    made = config(*names, **{"sampler__threshold": "none"} | changes)
    with made.unlocked():
        del made.diffusion.downsample, made.diffusion.crop
        made.system, made.codec = "latent", "@codec"
    return made


def prior(**changes) -> ConfigDict:
    """Of unCLIP's diffusion prior over the embeddings of `clip()`."""
    own = {"model": {"width": 8, "layers": 1, "heads": 2}, "conditions": {"clip_text": CONDITIONS["clip_text"]}}
    return tiny.config("unclip_prior", data__image_size=8, **own | changes)


def randomised(system: System) -> tuple[System, Variables]:
    """A system with random parameters, whose tables of tokens are such that words count for something."""
    shapes = jax.eval_shape(system.objective.init, jax.random.key(0))  # once: tracing takes longer than all else
    made = tiny.randomised(lambda key: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
    variables = {**made, "frozen": system.frozen}

    def louder(path, leaf):
        return 20 * leaf if any(getattr(part, "key", None) == "token" for part in path) else leaf

    return system, {**variables, "params": jax.tree_util.tree_map_with_path(louder, variables["params"])}


def asked(size: int = 6, seed: int = 0) -> Batch:
    """What samples are asked to show: labels, captions, whole pictures."""
    batch = tiny.batch(size, seed)
    return {"label": batch["label"], "tokens": batch["tokens"], "original": to_unit_range(batch["image"])}


def keys(size: int = 6, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), size)
