"""A class-conditional GAN: SNGAN with a projection discriminator (Miyato et al. 2018; Miyato & Koyama 2018).

`make_objective`, the game of a generator and a discriminator, is shared with the denoising diffusion GAN.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp

from diffjax.diffusion.sampling import noise_of
from diffjax.errors import UserError
from diffjax.models.gan.discriminator_loss import SETTINGS, Critic, Inputs, kept, own
from diffjax.models.networks import check_buildable, check_norms, classes_of, dtype_of, make
from diffjax.models.pixels import to_unit_range
from diffjax.models.settings import make_settings
from diffjax.nn.gan import Discriminator, Generator
from diffjax.typing import Aux, Batch, ImageSpec, Objective, PRNGKey, PRNGKeys, System


def build(config, spec: ImageSpec) -> System:
    """The system of `config` for images of `spec`. Raises UserError for choices that do not exist or do not fit."""
    classes = classes_of(config, "model", spec)
    generator = make(
        Generator,
        config.model,
        "model",
        but=("class_conditional",),
        size=spec.size,
        outputs=spec.channels,
        classes=classes,
        dtype=dtype_of(config),
    )
    check_norms("model", config.model, generator.channels, generator.multipliers)
    critic = make_critic(config, classes)

    def label_of(batch):
        return batch["label"] if classes else None

    def init(key):
        label = jnp.zeros((1,), jnp.int32) if classes else None
        return generator.init(key, jnp.zeros((1, generator.latent)), label)["params"]

    def play(params, batch, keys):
        label = label_of(batch)
        fake = generator.apply({"params": params}, noise_of(keys, (generator.latent,)), label)
        return (to_unit_range(batch["image"]), label), (fake, label)

    def plan(sampler_config, *, capacity=None, **overrides):
        made = make_settings("gan", {"truncation": float("inf")}, sampler_config, capacity=capacity, **overrides)
        if not made["truncation"] > 0:
            raise UserError(f"truncation={made['truncation']:g}: the bound on each value of z is above 0")
        return made

    def sample(variables, keys, condition, plan):
        """BigGAN's truncation trick (Brock et al. 2019, section 3.1): values of z beyond the bound are drawn again."""
        bound, shape = plan["truncation"], (generator.latent,)
        z = jax.vmap(lambda key: jax.random.truncated_normal(key, -bound, bound, shape))(keys)
        return generator.apply({"params": variables["params"]["generator"]}, z, label_of(condition))

    shown = jnp.zeros((1, spec.size, spec.size, spec.channels)), jnp.zeros((1,), jnp.int32) if classes else None
    objective = make_objective(critic, init, play, shown)
    plan(config.sampler)  # what does not fit is refused here, before anything is trained
    check_buildable(objective.init, "config.model, config.discriminator or config.data.image_size")
    return System(objective, classes, plan, sample)


def make_objective(
    critic: Critic,
    init: Callable[[PRNGKey], Any],
    play: Callable[[Any, Batch, PRNGKeys], tuple[Inputs, Inputs]],
    shown: Inputs,
) -> Objective:
    """A generator against a discriminator (Goodfellow et al. 2014), one step of each at a time.

    Args:
      init: makes the generator's parameters.
      play: (those, batch, keys) -> what the discriminator is shown that is real, and that is the generator's.
      shown: something like either, of one example.
    """

    def init_both(key):
        generator_key, discriminator_key = jax.random.split(key)
        discriminator, memory = critic.init(discriminator_key, *shown)
        params = {"generator": init(generator_key), "discriminator": discriminator}
        return {"params": params, **kept(memory)}

    def generator_loss(variables, batch, keys, moment):
        _, fake = play(variables["params"]["generator"], batch, keys)
        return critic.generator_loss(*own(variables), *fake), Aux({})

    def discriminator_loss(variables, batch, keys, moment):
        real, fake = play(variables["params"]["generator"], batch, keys)  # as the generator's: XLA makes them once
        loss, metrics, memory = critic.train_loss(*own(variables), real, fake)
        return loss, Aux(metrics, kept(memory))

    return Objective(init_both, {"generator": generator_loss, "discriminator": discriminator_loss})


def make_critic(config, classes: int) -> Critic:
    """Of a config's section `discriminator`. Raises UserError for what does not exist or does not fit."""
    section = config.discriminator
    network = make(Discriminator, section, "discriminator", but=SETTINGS, classes=classes, dtype=dtype_of(config))
    return Critic.from_config(network, section)
