"""Denoising diffusion GAN (Xiao, Kreis & Vahdat 2022): diffusion in a few large steps.

In a large step q(x_t-1 | x_t) is no Gaussian. So the network predicts one x_0 of many, by a latent z, and is trained so
that x_t-1 ~ q(x_t-1 | x_t, x_0) cannot be told from the data's. A sampler sees a denoiser, as of any other diffusion.
"""

import functools

import jax
from jax import lax
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax.diffusion.levels import Schedule
from diffjax.diffusion.noise import Noise, perturb, posterior_mean, posterior_variance, transition_variance
from diffjax.diffusion.sampling import noise_of, split
from diffjax.models.diffusion.process import Process
from diffjax.models.diffusion.sampling_settings import Model, draw, make_plan
from diffjax.models.gan.gan import make_critic, make_objective
from diffjax.models.networks import check_buildable, classes_of, make, make_unet
from diffjax.models.pixels import to_unit_range
from diffjax.nn.gan import Mapping
from diffjax.typing import Images, ImageSpec, PRNGKeys, System, Times

# What the paper fixes: x_0 is predicted, the posterior's variance added. The game stands for the rest.
_FIXED = {
    "parameterization": "x0",
    "variance": "fixed_small",
    "loss": "mse",
    "weighting": "simple",
    "times": "uniform",
    "rescale_timesteps": False,
}


def build(config, spec: ImageSpec) -> System:
    """The system of `config` for images of `spec`. Raises UserError for choices that do not exist or do not fit."""
    process = Process.from_config(ConfigDict({**config.diffusion, **_FIXED}))
    classes = classes_of(config, "diffusion", spec)
    unet = make_unet(config, spec, pool=None, out_channels=spec.channels, label_rows=classes)
    mapping = make(Mapping, config.mapping, "mapping")
    critic = make_critic(config, classes)
    shape = (spec.size, spec.size, spec.channels)

    def generate(params, x, t, z, label, dropout_keys=None):
        """x_0 in [-1, 1] of x_t and a latent; `t` from 0 to T - 1."""
        style = mapping.apply({"params": params["mapping"]}, z)
        given = {"label": label, "embedding": style, "dropout_keys": dropout_keys}
        return jnp.tanh(unet.apply({"params": params["unet"]}, x, t, **given))

    def init(key):
        unet_key, mapping_key = jax.random.split(key)
        style, params = mapping.init_with_output(mapping_key, jnp.zeros((1, mapping.latent)))
        label = jnp.zeros((1,), jnp.int32) if classes else None
        inputs = jnp.zeros((1, *shape)), jnp.zeros((1,))
        return {
            "unet": unet.init(unet_key, *inputs, label=label, embedding=style)["params"],
            "mapping": params["params"],
        }

    def play(params, batch, keys):
        """Real and fake x_t-1 for one x_t: algorithm of section 4, eqs. 4 to 6."""
        time_key, z_key, dropout_key, pair_key, posterior_key = jnp.moveaxis(
            jax.vmap(lambda key: jax.random.split(key, 5))(keys), 1, 0
        )
        label = batch["label"] if classes else None
        last = process.schedule.timesteps
        t = jax.vmap(lambda key: jax.random.randint(key, (), 1, last + 1))(time_key).astype(jnp.float32)
        real, x = draw_pair(pair_key, to_unit_range(batch["image"]), t, process.schedule)
        x0 = generate(params, x, t - 1, noise_of(z_key, (mapping.latent,)), label, dropout_key)
        fake = draw_posterior(posterior_key, x0, x, process.schedule(t), process.schedule(t - 1))
        return (real, label, x, t - 1), (fake, label, x, t - 1)

    def sample(variables, keys, condition, plan):
        z_keys, keys = split(keys)
        label = condition["label"] if classes else None

        def network(x, t):  # draws a z for each example and level, of which no sampler knows
            level_keys = jax.vmap(jax.random.fold_in)(z_keys, lax.bitcast_convert_type(t, jnp.uint32))
            return generate(variables["params"]["generator"], x, t, noise_of(level_keys, (mapping.latent,)), label)

        return draw(Model(process, process.denoiser(network), None, shape), keys, plan, condition)

    plan = functools.partial(make_plan, process, guided=False)
    plan(config.sampler)
    example = jnp.zeros((1, *shape))
    shown = example, jnp.zeros((1,), jnp.int32) if classes else None, example, jnp.zeros((1,))
    objective = make_objective(critic, init, play, shown)
    check_buildable(objective.init, "config.model, config.mapping, config.discriminator or config.data.image_size")
    return System(objective, classes, plan, sample)


def draw_pair(keys: PRNGKeys, x0: Images, t: Times, schedule: Schedule) -> tuple[Images, Images]:
    """x_t-1 and x_t of q for images `x0` in [-1, 1], at whole times `t` from 1 to T."""
    first, second = split(keys)
    noises = noise_of(first, x0.shape[1:]), noise_of(second, x0.shape[1:])

    def one(x0, eps, more, t):
        now, next = schedule(t), schedule(t - 1)
        x = perturb(x0, eps, next)
        return x, now.alpha / next.alpha * x + jnp.sqrt(transition_variance(now, next)) * more

    return jax.vmap(one)(x0, *noises, t)


def draw_posterior(keys: PRNGKeys, x0: Images, x: Images, now: Noise, next: Noise) -> Images:
    """A draw from q(x_next | x_now = x, x_0), the levels by example; `x0` itself where `next` is clean."""

    def one(x0, x, eps, now, next):
        return posterior_mean(x0, x, now, next) + jnp.sqrt(posterior_variance(now, next)) * eps

    return jax.vmap(one)(x0, x, noise_of(keys, x.shape[1:]), now, next)
