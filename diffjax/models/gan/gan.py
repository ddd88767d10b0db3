"""A class-conditional GAN: SNGAN with a projection discriminator.

References:
  Miyato et al. 2018, "Spectral normalization for generative adversarial networks".
  Miyato & Koyama 2018, "cGANs with projection discriminator".
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from diffjax.diffusion.random import normal_each
from diffjax.errors import UserError
from diffjax.models.base import GenerativeModel
from diffjax.models.gan.discriminator_loss import (
    SETTINGS,
    DiscriminatorInputs,
    DiscriminatorLoss,
    collection,
    discriminator_variables,
)
from diffjax.models.images import to_unit_range
from diffjax.models.networks import apply, check_buildable, check_norms, classes_of, dtype_of, make
from diffjax.models.observation import Observer
from diffjax.models.sampling_settings import SamplingSettings, make_scalars
from diffjax.nn.gan import Discriminator, Generator
from diffjax.typing import Aux, Batch, Images, ImageSpec, Labels, LossFn, PRNGKey, PRNGKeys, StepContext, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialModel(GenerativeModel):
    """A generator trained against a discriminator (Goodfellow et al. 2014), both updated in every step.

    Attributes:
      discriminator: the discriminator with both losses.
      image_shape: height, width and channels of an image.
    """

    discriminator: DiscriminatorLoss
    image_shape: tuple[int, int, int]

    training_only = ("discriminator", "spectral")

    @abc.abstractmethod
    def init_generator(self, key: PRNGKey) -> Any:
        """Returns fresh parameters of the generator. Consumes `key`."""

    @property
    @abc.abstractmethod
    def example_inputs(self) -> DiscriminatorInputs:
        """Inputs of the discriminator for a batch of one, from which its parameters take their shapes."""

    @abc.abstractmethod
    def real_and_fake(
        self, params: Any, batch: Batch, keys: PRNGKeys
    ) -> tuple[DiscriminatorInputs, DiscriminatorInputs]:
        """Returns the discriminator's inputs made of data, and those made by the generator with `params`."""

    def init(self, key: PRNGKey) -> Variables:
        generator_key, discriminator_key = jax.random.split(key)
        params, power = self.discriminator.init(discriminator_key, *self.example_inputs)
        return {
            "params": {"generator": self.init_generator(generator_key), "discriminator": params},
            **collection(power),
        }

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {"generator": self.generator_loss, "discriminator": self.discriminator_loss}

    def generator_loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext):
        """Returns the generator's loss per example."""
        _, fake = self.real_and_fake(variables["params"]["generator"], batch, keys)
        return self.discriminator.generator_loss(*discriminator_variables(variables), *fake), Aux({})

    def discriminator_loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext):
        """Returns the discriminator's loss per example."""
        # The same samples as in the generator's loss, so that XLA computes them once.
        real, fake = self.real_and_fake(variables["params"]["generator"], batch, keys)
        loss, metrics, power = self.discriminator.train_loss(*discriminator_variables(variables), real, fake)
        return loss, Aux(metrics, collection(power))

    def label(self, conditions: Mapping[str, Array]) -> Labels | None:
        """Returns the labels of a batch or of conditions; None for an unconditional model."""
        return conditions["label"] if self.classes else None

    @property
    def example_label(self) -> Labels | None:
        """Label of a batch of one; None for an unconditional model."""
        return jnp.zeros((1,), jnp.int32) if self.classes else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GAN(AdversarialModel):
    """A generator of images from a normal latent and a label."""

    generator: Generator

    def init_generator(self, key: PRNGKey) -> Any:
        return self.generator.init(key, jnp.zeros((1, self.generator.latent)), self.example_label)["params"]

    @property
    def example_inputs(self) -> DiscriminatorInputs:
        return jnp.zeros((1, *self.image_shape)), self.example_label

    def real_and_fake(
        self, params: Any, batch: Batch, keys: PRNGKeys
    ) -> tuple[DiscriminatorInputs, DiscriminatorInputs]:
        label = self.label(batch)
        fake = apply(self.generator, params, normal_each(keys, (self.generator.latent,)), label)
        return (to_unit_range(batch["image"]), label), (fake, label)

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        """Returns the scalar `truncation`, the bound on the absolute value of each element of z; inf: no truncation."""
        settings = SamplingSettings(make_scalars("gan", {"truncation": float("inf")}, sampler_config, **overrides))
        if not settings["truncation"] > 0:
            raise UserError(
                f"truncation={settings['truncation']:g}: must be above 0; it bounds the absolute value of each element "
                "of z, and inf means no bound"
            )
        return settings

    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Images:
        """Samples images with the truncation trick: elements of z beyond the bound are sampled again.

        Reference: Brock et al. 2019 (BigGAN), section 3.1.
        """
        bound, shape = settings["truncation"], (self.generator.latent,)
        z = jax.vmap(lambda key: jax.random.truncated_normal(key, -bound, bound, shape))(keys)
        return apply(self.generator, variables["params"]["generator"], z, self.label(conditions))


def build(config: ConfigDict, spec: ImageSpec) -> GAN:
    """Builds the GAN of `config` for images of `spec`.

    Raises:
      UserError: an unknown choice, or one that does not fit the images.
    """
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
    model = GAN(
        generator=generator,
        discriminator=make_discriminator(config, classes),
        image_shape=(spec.size, spec.size, spec.channels),
        output_size=spec.size,
        classes=classes,
    )
    model.make_settings(config.sampler)  # reports invalid settings before training
    check_buildable(model, "config.model, config.discriminator or config.data.image_size")
    return model


def make_discriminator(config: ConfigDict, classes: int) -> DiscriminatorLoss:
    """Builds the discriminator of a config's section `discriminator`.

    Raises:
      UserError: an unknown choice, or one that does not fit the images.
    """
    section = config.discriminator
    network = make(Discriminator, section, "discriminator", but=SETTINGS, classes=classes, dtype=dtype_of(config))
    return DiscriminatorLoss.from_config(network, section)
