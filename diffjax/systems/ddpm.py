"""Denoising diffusion on pixels: DDPM (Ho et al. 2020) and, by its config, Improved DDPM, ADM and DDIM."""

import dataclasses
import functools

import jax
from jax import numpy as jnp

from diffjax.errors import UserError, unknown
from diffjax.nn.unet import UNet
from diffjax.systems.process import Plan, Process
from diffjax.typing import Aux, ImageSpec, Labels, Objective, PRNGKeys, System

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(config, spec: ImageSpec) -> System:
    """The system of `config` for images of `spec`. Raises UserError for choices that do not exist or do not fit."""
    process = Process.from_config(config.diffusion)
    if config.diffusion.class_conditional and not spec.classes:
        raise UserError("diffusion.class_conditional=True, but the data set has no labels: set it to False")
    if not 0 <= config.diffusion.label_dropout < 1:
        raise UserError(f"diffusion.label_dropout={config.diffusion.label_dropout}: a share from 0 up to, but not, 1")
    classes = spec.classes if config.diffusion.class_conditional else 0
    label_dropout = config.diffusion.label_dropout if classes else 0.0
    guided = label_dropout > 0  # then the label table has one more row, which says "no label"
    unet = _unet(config, spec, label_rows=classes + guided)
    shape = (spec.size, spec.size, spec.channels)

    def network(variables, label, dropout_keys=None):
        def apply(x, t):
            return unet.apply({"params": variables["params"]["model"]}, x, t, label=label, dropout_keys=dropout_keys)

        return apply

    def init(key):
        label = jnp.zeros((1,), jnp.int32) if classes else None
        return {"params": {"model": unet.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,)), label=label)["params"]}}

    def loss(variables, batch, keys):
        label_key, dropout_key, noise_key = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
        image = batch["image"].astype(jnp.float32) / 127.5 - 1.0
        label = _drop(label_key, batch["label"], label_dropout, null=classes) if classes else None
        return process.loss(network(variables, label, dropout_key), image, noise_key), Aux({})

    def sample(variables, keys, condition, plan: Plan):
        label = condition["label"] if classes else None
        unconditional = network(variables, jnp.full_like(label, classes)) if guided else None
        return process.sample(network(variables, label), unconditional, keys, plan, shape=shape)

    # What does not fit is refused here, before anything is trained.
    plan = functools.partial(process.plan, guided=guided)
    plan(config.sampler)
    try:
        jax.eval_shape(init, jax.random.key(0))
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error
    return System(Objective(init, {"model": loss}), classes, plan, sample)


def _unet(config, spec: ImageSpec, *, label_rows: int) -> UNet:
    given_here = {"parent", "name", "dtype", "out_channels", "label_rows"}
    fields = {field.name for field in dataclasses.fields(UNet)} - given_here
    for name in config.model:
        if name not in fields:
            raise unknown("field of config.model", name, fields)
    if config.dtype not in _DTYPES:
        raise unknown("dtype", config.dtype, _DTYPES)
    halvings = len(config.model.multipliers) - 1
    if spec.size % 2**halvings:
        raise UserError(
            f"data.image_size={spec.size} cannot be halved {halvings} times, as model.multipliers asks: "
            f"use a multiple of {2**halvings}, or fewer multipliers"
        )
    return UNet(out_channels=spec.channels, label_rows=label_rows, dtype=_DTYPES[config.dtype], **config.model)


def _drop(keys: PRNGKeys, labels: Labels, rate: float, *, null: int) -> Labels:
    """Each label becomes `null` with probability `rate`: Ho & Salimans 2022, algorithm 1."""
    return jnp.where(jax.vmap(jax.random.bernoulli, (0, None))(keys, rate), null, labels)
