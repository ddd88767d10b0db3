"""Denoising diffusion GAN: diffusion in a few large steps.

For a large step, q(x_t-1 | x_t) is not Gaussian. The network therefore predicts x_0 from x_t and a random latent z, and
is trained so that a discriminator cannot distinguish x_t-1 ~ q(x_t-1 | x_t, x_0) from data. A sampler sees an ordinary
denoiser.

References:
  Xiao, Kreis & Vahdat 2022, "Tackling the generative learning trilemma with denoising diffusion GANs".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from diffjax.diffusion.noise import Noise, perturb, posterior_mean, posterior_variance, transition_variance
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.random import normal_each, split_each
from diffjax.models.diffusion.bound_model import BoundModel
from diffjax.models.diffusion.diffusion_settings import make_diffusion_settings
from diffjax.models.diffusion.process import Process
from diffjax.models.gan.discriminator_loss import DiscriminatorInputs
from diffjax.models.gan.gan import AdversarialModel, make_discriminator
from diffjax.models.images import to_unit_range
from diffjax.models.networks import apply, check_buildable, classes_of, make, make_unet
from diffjax.models.observation import Observer
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.nn.gan import MappingNetwork
from diffjax.nn.unet import UNet
from diffjax.typing import Batch, Images, ImageSpec, Labels, PRNGKey, PRNGKeys, Times, Variables

# Fixed in the paper: x_0 is predicted, and the posterior's variance is added. The discriminator replaces the loss.
_FIXED = {
    "parameterization": "x0",
    "variance": "fixed_small",
    "loss": "mse",
    "weighting": "simple",
    "time_sampling": "uniform",
    "rescale_timesteps": False,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDGAN(AdversarialModel):
    """A denoising diffusion GAN.

    Attributes:
      process: the diffusion process and its parameterisation.
      unet: predicts x_0 from x_t, the timestep, and the style.
      mapping: maps the latent z to the style.
    """

    process: Process
    unet: UNet
    mapping: MappingNetwork

    def init_generator(self, key: PRNGKey) -> Any:
        unet_key, mapping_key = jax.random.split(key)
        style, mapping = self.mapping.init_with_output(mapping_key, jnp.zeros((1, self.mapping.latent)))
        x, t = jnp.zeros((1, *self.image_shape)), jnp.zeros((1,))
        unet = self.unet.init(unet_key, x, t, label=self.example_label, embedding=style)
        return {"unet": unet["params"], "mapping": mapping["params"]}

    @property
    def example_inputs(self) -> DiscriminatorInputs:
        example = jnp.zeros((1, *self.image_shape))
        return example, self.example_label, example, jnp.zeros((1,))

    def generate(
        self, params: Any, x: Images, t: Times, z: Array, label: Labels | None, dropout_keys: PRNGKeys | None = None
    ) -> Images:
        """Returns x_0 [-1, 1] predicted from x_t and a latent z [B, Z]; `t` counts from 0 to T - 1."""
        style = apply(self.mapping, params["mapping"], z)
        inputs = {"label": label, "embedding": style, "dropout_keys": dropout_keys}
        return jnp.tanh(apply(self.unet, params["unet"], x, t, **inputs))

    def real_and_fake(
        self, params: Any, batch: Batch, keys: PRNGKeys
    ) -> tuple[DiscriminatorInputs, DiscriminatorInputs]:
        """Returns real and fake x_t-1 for the same x_t: section 3.2."""
        time_key, z_key, dropout_key, pair_key, posterior_key = split_each(keys, 5)
        label, schedule = self.label(batch), self.process.schedule
        timesteps = schedule.timesteps
        t = jax.vmap(lambda key: jax.random.randint(key, (), 1, timesteps + 1))(time_key).astype(jnp.float32)
        real, x = sample_pair(pair_key, to_unit_range(batch["image"]), t, schedule)
        x0 = self.generate(params, x, t - 1, normal_each(z_key, (self.mapping.latent,)), label, dropout_key)
        fake = sample_posterior(posterior_key, x0, x, schedule(t), schedule(t - 1))
        return (real, label, x, t - 1), (fake, label, x, t - 1)

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        return make_diffusion_settings(self.process, sampler_config, guided=(), capacity=capacity, **overrides)

    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Images:
        z_keys, keys = split_each(keys)
        label = self.label(conditions)

        def network(x: Images, t: Times) -> Images:
            # A latent z per example and timestep, so that the sampler is unaware of z.
            step_keys = jax.vmap(jax.random.fold_in)(z_keys, lax.bitcast_convert_type(t, jnp.uint32))
            z = normal_each(step_keys, (self.mapping.latent,))
            return self.generate(variables["params"]["generator"], x, t, z, label)

        denoiser = self.process.denoiser(network)
        return BoundModel(self.process, denoiser, None, self.image_shape).sample(keys, settings, conditions)


def build(config: ConfigDict, spec: ImageSpec) -> DDGAN:
    """Builds the denoising diffusion GAN of `config` for images of `spec`.

    Raises:
      UserError: an unknown choice, or one that does not fit the images.
    """
    classes = classes_of(config, "diffusion", spec)
    model = DDGAN(
        process=Process.from_config(ConfigDict({**config.diffusion, **_FIXED})),
        unet=make_unet(config, spec, pool=None, out_channels=spec.channels, num_label_embeddings=classes),
        mapping=make(MappingNetwork, config.mapping, "mapping"),
        discriminator=make_discriminator(config, classes),
        image_shape=(spec.size, spec.size, spec.channels),
        output_size=spec.size,
        classes=classes,
    )
    model.make_settings(config.sampler)  # reports invalid settings before training
    check_buildable(model, "config.model, config.mapping, config.discriminator or config.data.image_size")
    return model


def sample_pair(keys: PRNGKeys, x0: Images, t: Times, schedule: Schedule) -> tuple[Images, Images]:
    """Samples x_t-1 and x_t jointly from the forward process.

    Args:
      keys: one per example; consumed.
      x0: images [-1, 1].
      t: timesteps from 1 to T.
    """
    first, second = split_each(keys)
    noises = normal_each(first, x0.shape[1:]), normal_each(second, x0.shape[1:])

    def one(x0: Array, eps: Array, transition_eps: Array, t: Array) -> tuple[Array, Array]:
        now, next = schedule(t), schedule(t - 1)
        x = perturb(x0, eps, next)
        return x, now.alpha / next.alpha * x + jnp.sqrt(transition_variance(now, next)) * transition_eps

    return jax.vmap(one)(x0, *noises, t)


def sample_posterior(keys: PRNGKeys, x0: Images, x: Images, now: Noise, next: Noise) -> Images:
    """Samples from q(x_next | x_now = x, x_0); returns `x0` where `next` is noise-free.

    Args:
      keys: one per example; consumed.
      now, next: noise levels per example, [B] each.
    """

    def one(x0: Array, x: Array, eps: Array, now: Noise, next: Noise) -> Array:
        return posterior_mean(x0, x, now, next) + jnp.sqrt(posterior_variance(now, next)) * eps

    return jax.vmap(one)(x0, x, normal_each(keys, x.shape[1:]), now, next)
