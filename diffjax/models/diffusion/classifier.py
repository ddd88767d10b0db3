"""A classifier of noised images, to guide a diffusion model by: ADM (Dhariwal & Nichol 2021), sec. 4 and app. H."""

import jax
import optax
from jax import numpy as jnp

from diffjax.diffusion import sampling
from diffjax.diffusion.noise import perturb
from diffjax.errors import UserError
from diffjax.models.diffusion.process import make_schedule, make_times, time_scale
from diffjax.models.networks import check_buildable, make_unet
from diffjax.models.pixels import to_unit_range
from diffjax.typing import Aux, ImageSpec, Objective, System


def build(config, spec: ImageSpec) -> System:
    """The classifier of `config` for images of `spec`. Raises UserError for choices that do not exist or do not fit."""
    if not spec.classes:
        raise UserError("system=classifier needs labels, and the data set has none")
    if not config.model.get("pool"):
        raise UserError("system=classifier needs model.pool, attention or mean: it turns the UNet's half into logits")
    schedule = make_schedule(config.diffusion)
    times = make_times(config.diffusion, schedule)
    scale = time_scale(config.diffusion, schedule)
    half_unet = make_unet(config, spec, out_channels=spec.classes, label_rows=0)

    def classify(variables, x, noise, dropout_keys=None):
        t = jnp.broadcast_to(scale * (noise.t - 1.0), x.shape[:1])  # as the diffusion models count
        return half_unet.apply({"params": variables["params"]["model"]}, x, t, dropout_keys=dropout_keys)

    def init(key):
        shape = (1, spec.size, spec.size, spec.channels)
        memory = times.init(schedule)
        params = half_unet.init(key, jnp.zeros(shape), jnp.zeros((1,)))["params"]
        return {"params": {"model": params}} | ({"times": memory} if memory else {})

    def loss(variables, batch, keys, moment):
        time_key, eps_key, dropout_key = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
        memory = variables.get("times", {})
        t, factor = jax.vmap(times.draw, (0, None, None))(time_key, schedule, memory)
        x0, noise = to_unit_range(batch["image"]), schedule(t)
        x = jax.vmap(perturb)(x0, sampling.noise_of(eps_key, x0.shape[1:]), noise)
        logits = classify(variables, x, noise, dropout_key)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        memory = times.update(memory, t, jax.lax.stop_gradient(value))
        right = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        return factor * value, Aux({"accuracy": right}, {"times": memory} if memory else {})

    check_buildable(init)
    return System(Objective(init, {"model": loss}), spec.classes, classify=classify)
