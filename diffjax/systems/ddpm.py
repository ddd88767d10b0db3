"""Denoising diffusion on pixels: DDPM (Ho et al. 2020) and, by its config, Improved DDPM, ADM and DDIM."""

import functools

import jax
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.systems.networks import check_buildable, classes_of, make_unet
from diffjax.systems.pixels import to_unit_range
from diffjax.systems.plan import Model, Plan, draw, make_plan
from diffjax.systems.process import Process
from diffjax.typing import Aux, ImageSpec, Labels, Objective, PRNGKeys, System


def build(config, spec: ImageSpec) -> System:
    """The system of `config` for images of `spec`. Raises UserError for choices that do not exist or do not fit."""
    process = Process.from_config(config.diffusion)
    if not 0 <= config.diffusion.label_dropout < 1:
        raise UserError(f"diffusion.label_dropout={config.diffusion.label_dropout}: a share from 0 up to, but not, 1")
    classes = classes_of(config, "diffusion", spec)
    label_dropout = config.diffusion.label_dropout if classes else 0.0
    guided = label_dropout > 0  # then the label table has one more row, which says "no label"
    channels = spec.channels * (2 if process.learns_variance else 1)
    unet = make_unet(config, spec, pool=None, out_channels=channels, label_rows=classes + guided)
    shape = (spec.size, spec.size, spec.channels)

    def network(variables, label, dropout_keys=None):
        def apply(x, t):
            return unet.apply({"params": variables["params"]["model"]}, x, t, label=label, dropout_keys=dropout_keys)

        return apply

    def init(key):
        label = jnp.zeros((1,), jnp.int32) if classes else None
        params = unet.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,)), label=label)["params"]
        memory = process.times.init(process.schedule)
        return {"params": {"model": {**params, **process.init()}}} | ({"times": memory} if memory else {})

    def loss(variables, batch, keys, moment):
        label_key, dropout_key, noise_key = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
        image = to_unit_range(batch["image"])
        label = _drop(label_key, batch["label"], label_dropout, null=classes) if classes else None
        value, memory = process.bound(variables["params"]["model"]).train_loss(
            network(variables, label, dropout_key), image, noise_key, variables.get("times", {})
        )
        return value, Aux({}, {"times": memory} if memory else {})

    def model(variables, condition) -> Model:
        label = condition["label"] if classes else None
        bound = process.bound(variables["params"]["model"])
        unconditional = bound.denoiser(network(variables, jnp.full_like(label, classes))) if guided else None
        return Model(bound, bound.denoiser(network(variables, label)), unconditional, shape)

    def sample(variables, keys, condition, plan: Plan):
        return draw(model(variables, condition), keys, plan, condition)

    # What does not fit is refused here, before anything is trained.
    plan = functools.partial(make_plan, process, guided=guided)
    plan(config.sampler)
    check_buildable(init)
    return System(Objective(init, {"model": loss}), classes, plan, sample, model)


def _drop(keys: PRNGKeys, labels: Labels, rate: float, *, null: int) -> Labels:
    """Each label becomes `null` with probability `rate`: Ho & Salimans 2022, algorithm 1."""
    return jnp.where(jax.vmap(jax.random.bernoulli, (0, None))(keys, rate), null, labels)
