"""Variational autoencoders, and the KL-regularised first stage of latent diffusion.

The loss is the negative ELBO in nats per value of the image. Its KL is weighted by `loss.beta` and, per channel,
bounded below by `loss.free_bits`. The first stage of latent diffusion (Rombach et al. 2022) has beta 1e-6, the
likelihood l1, and an adversarial loss.

References:
  Kingma & Welling 2014, "Auto-encoding variational Bayes".
  Higgins et al. 2017, "beta-VAE".
  Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow" (free bits).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffjax.diffusion.random import fold_in_each, normal_each, split_each
from diffjax.errors import validate_integer, validate_number
from diffjax.latents import gaussian, statistics
from diffjax.models.autoencoders.encoder_decoder import EncoderDecoder, Params
from diffjax.models.autoencoders.objective import (
    AutoencoderOutput,
    ReconstructionModel,
    check_autoencoder,
    choose_class,
    loss_fields,
)
from diffjax.models.base import Autoencoder, GenerativeModel, LikelihoodModel
from diffjax.models.images import to_unit_range
from diffjax.models.observation import Observer
from diffjax.models.sampling_settings import SamplingSettings, make_scalars
from diffjax.typing import Batch, Codec, Images, ImageSpec, PRNGKey, PRNGKeys, StepContext, Variables

_BITS = 1.0 / math.log(2.0)  # per nat


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAE(ReconstructionModel, GenerativeModel):
    """A variational autoencoder with a Gaussian latent.

    Attributes:
      latent_channels: channels of the latent.
      beta: weight of the KL.
      free_bits: lower bound of each channel's KL, in bits.
    """

    latent_channels: int
    beta: float
    free_bits: float

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a latent."""
        return (*self.networks.grid, self.latent_channels)

    @property
    def num_values(self) -> int:
        """Number of values of an image."""
        return math.prod(self.networks.shape)

    def init_autoencoder(self, key: PRNGKey) -> Variables:
        params = self.networks.init(key, jnp.zeros((1, *self.latent_shape)))
        return {"params": {"model": params}, "latents": statistics.init()}

    def forward(
        self, variables: Variables, x: Images, batch: Batch, keys: PRNGKeys, context: StepContext
    ) -> AutoencoderOutput:
        params, distribution = variables["params"]["model"], self.networks.distribution
        noise_keys, keys = split_each(keys)
        encoder_keys, decoder_keys = split_each(keys)
        q = gaussian.split(self.networks.encode(params, x, encoder_keys))
        z = gaussian.sample(noise_keys, q)
        nats = gaussian.kl(q)
        latent_cost = self.beta * gaussian.with_free_bits(nats, self.free_bits) / self.num_values
        output = self.networks.decode(params, z, x, decoder_keys)
        kl = _BITS * nats.reshape(len(nats), -1).sum(axis=-1) / self.num_values
        metrics = {"kl": kl}
        if distribution.exact:
            nll = _BITS * distribution.nll(x, output)
            metrics |= {"nll": nll, "bits_per_dim": nll + kl}
        updated = {"latents": statistics.ema_update(variables["latents"], q.mean, context)}
        return AutoencoderOutput(z, output, latent_cost, metrics, updated)

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        """Returns the scalar `temperature`, the standard deviation of the sampled latents."""
        settings = SamplingSettings(make_scalars("vae", {"temperature": 1.0}, sampler_config, **overrides))
        validate_number("sampler.temperature", float(settings["temperature"]), low=0)
        return settings

    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Images:
        latent_keys, pixel_keys = split_each(keys)
        z = settings["temperature"] * normal_each(latent_keys, self.latent_shape)
        return self.networks.sample(variables["params"]["model"], pixel_keys, z)


class CodecVAE(VAE, Autoencoder):
    """A VAE whose decoder is not autoregressive, so that latents have one reconstruction."""

    def codec(self, variables: Variables) -> Codec:
        params, scale = variables["params"]["model"], statistics.scale(variables["latents"])
        return Codec(
            encode=lambda x: gaussian.split(self.networks.encode(params, x)).mean * scale,
            decode=lambda z: self.networks.reconstruct(params, z / scale),
            shape=self.latent_shape,
            scale=scale,
        )


class LikelihoodVAE(VAE, LikelihoodModel):
    """A VAE whose output distribution is a probability of grey levels."""

    def likelihood(
        self, variables: Variables, keys: PRNGKeys, batch: Batch, samples: int
    ) -> dict[str, Float[Array, " B"]]:
        """Returns the ELBO and its terms, and the importance-weighted bound, in bits per dimension.

        Args:
          samples: number of latents per example.

        Reference: Burda et al. 2016, equation 8.
        """
        params, x = variables["params"]["model"], to_unit_range(batch["image"])
        q = gaussian.split(self.networks.encode(params, x))
        start = jnp.zeros(len(x)), jnp.full(len(x), -jnp.inf)

        def add(totals: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            nll, log_weight = self._importance_weight(params, fold_in_each(keys, i), x, q)
            return (totals[0] + nll / samples, jnp.logaddexp(totals[1], log_weight)), None

        (nll, log_weights), _ = lax.scan(add, start, jnp.arange(samples))
        kl = gaussian.kl(q).reshape(len(x), -1).sum(axis=-1)
        nats = {"elbo": nll + kl, "nll": nll, "kl": kl, "importance_weighted": jnp.log(samples) - log_weights}
        return jax.tree.map(lambda value: _BITS * value / self.num_values, nats)

    def _importance_weight(
        self, params: Params, keys: PRNGKeys, x: Images, q: gaussian.Gaussian
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Returns -log p(x | z) and log p(x, z) / q(z | x) for a sampled z, in nats."""
        prior = gaussian.Gaussian(jnp.zeros_like(q.mean), jnp.zeros_like(q.mean))
        z = gaussian.sample(keys, q)
        nll = self.num_values * self.networks.distribution.nll(x, self.networks.decode(params, z, x))
        return nll, gaussian.log_density(z, prior) - gaussian.log_density(z, q) - nll


class CodecLikelihoodVAE(CodecVAE, LikelihoodVAE):
    """A VAE with both a codec and a likelihood."""


def build(config: ConfigDict, spec: ImageSpec, **frozen: Params) -> VAE:
    """Builds the VAE of `config` for images of `spec`.

    Args:
      frozen: "features", the parameters of the network of the perceptual loss.

    Raises:
      UserError: an unknown choice, or one that does not fit the images.
    """
    channels = validate_integer("model.latent_channels", config.model.latent_channels)
    networks = EncoderDecoder.from_config(config, spec, latent_channels=channels, moments=2)
    for name in ("beta", "free_bits"):
        validate_number(f"loss.{name}", config.loss[name], low=0)
    model_class = choose_class(networks, VAE, LikelihoodVAE, CodecVAE, CodecLikelihoodVAE)
    model = model_class(
        **loss_fields(config, networks),
        latent_channels=channels,
        beta=config.loss.beta,
        free_bits=config.loss.free_bits,
        output_size=spec.size,
        frozen=frozen,
    )
    if "sampler" in config:
        model.make_settings(config.sampler)  # reports invalid settings before training
    check_autoencoder(model)
    return model
