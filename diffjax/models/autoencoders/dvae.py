"""DALL-E's discrete VAE: codes relaxed by Gumbel-softmax.

The loss is the reconstruction plus `loss.kl_weight` times the KL of the codes to the uniform distribution. That weight
and the temperature are annealed along half a cosine.

References:
  Ramesh et al. 2021, "Zero-shot text-to-image generation", section 2.1 and appendix A.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffjax.diffusion.random import split_each
from diffjax.errors import validate_integer, validate_number
from diffjax.latents import codebook, gumbel_softmax, statistics
from diffjax.models.autoencoders.encoder_decoder import EncoderDecoder, Params
from diffjax.models.autoencoders.objective import (
    AutoencoderOutput,
    ReconstructionModel,
    check_autoencoder,
    loss_fields,
)
from diffjax.models.base import Autoencoder
from diffjax.typing import Batch, Codec, Codes, Images, ImageSpec, Latents, PRNGKey, PRNGKeys, StepContext, Variables


@dataclasses.dataclass(frozen=True)
class Annealing:
    """A value that moves from `start` to `end` in `steps` training steps."""

    start: float
    end: float
    steps: int

    def __call__(self, step: Array) -> Float[Array, ""]:
        """Returns the value along half a cosine; `end` from step `steps` on."""
        fraction = jnp.clip(step / max(self.steps, 1), 0.0, 1.0) if self.steps else 1.0
        return self.end + (self.start - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * fraction))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteVAE(ReconstructionModel):
    """An autoencoder whose encoder outputs logits of the codes.

    Attributes:
      codebook_size: number of codes K.
      latent_channels: channels of a codebook entry.
      temperature: of the Gumbel-softmax, by step.
      kl_weight: weight of the KL, by step.
    """

    codebook_size: int
    latent_channels: int
    temperature: Annealing
    kl_weight: Annealing

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a latent."""
        return (*self.networks.grid, self.latent_channels)

    def init_autoencoder(self, key: PRNGKey) -> Variables:
        networks_key, codebook_key = jax.random.split(key)
        entries = jax.random.normal(codebook_key, (self.codebook_size, self.latent_channels))
        params = {**self.networks.init(networks_key, jnp.zeros((1, *self.latent_shape))), "codebook": entries}
        return {
            "params": {"model": params},
            "codebook": {"usage": jnp.zeros((1, self.codebook_size))},
            "latents": statistics.init(),
        }

    def forward(
        self, variables: Variables, x: Images, batch: Batch, keys: PRNGKeys, context: StepContext
    ) -> AutoencoderOutput:
        params, num_values = variables["params"]["model"], math.prod(self.networks.shape)
        gumbel_keys, keys = split_each(keys)
        encoder_keys, decoder_keys = split_each(keys)
        temperature, weight = self.temperature(context.step), self.kl_weight(context.step)
        logits = self.networks.encode(params, x, encoder_keys)
        latent = gumbel_softmax.sample_relaxed(gumbel_keys, logits, temperature) @ params["codebook"]
        nats = gumbel_softmax.kl_to_uniform(logits).reshape(len(logits), -1).sum(axis=-1)
        usage = codebook.usage(variables["codebook"], jnp.argmax(logits, axis=-1)[..., None], context)
        bits = 1.0 / math.log(2.0)
        metrics = {"kl": bits * nats / num_values, "temperature": temperature, "kl_weight": weight}
        latents = statistics.ema_update(variables["latents"], latent, context)
        updated = {"codebook": {"usage": usage}, "latents": latents}
        output = self.networks.decode(params, latent, x, decoder_keys)
        return AutoencoderOutput(latent, output, weight * nats / num_values, metrics, updated)

    def summarize(self, collections: Mapping[str, Any]) -> dict[str, Array]:
        return codebook.usage_metrics(collections["codebook"]["usage"])


class CodecDiscreteVAE(DiscreteVAE, Autoencoder):
    """A discrete VAE whose decoder is not autoregressive, so that codes have one reconstruction."""

    def codec(self, variables: Variables) -> Codec:
        params, scale = variables["params"]["model"], statistics.scale(variables["latents"])

        def to_codes(x: Images) -> Codes:
            return (jnp.argmax(self.networks.encode(params, x), axis=-1)[..., None],)

        def lookup(codes: Codes) -> Latents:
            return params["codebook"][codes[0][..., 0]]

        return Codec(
            encode=lambda x: lookup(to_codes(x)) * scale,
            decode=lambda z: self.networks.reconstruct(params, z / scale),
            shape=self.latent_shape,
            scale=scale,
            to_codes=to_codes,
            from_codes=lambda codes: self.networks.reconstruct(params, lookup(codes)),
            grids=((*self.networks.grid, 1),),
            vocabulary=self.codebook_size,
        )


def build(config: ConfigDict, spec: ImageSpec, **frozen: Params) -> DiscreteVAE:
    """Builds the discrete VAE of `config` for images of `spec`.

    Args:
      frozen: "features", the parameters of the network of the perceptual loss.

    Raises:
      UserError: an unknown choice, or one that does not fit the images.
    """
    section, loss = config.codebook, config.loss
    validate_integer("codebook.size", section.size, low=2)
    validate_integer("model.latent_channels", config.model.latent_channels)
    for name in ("temperature", "temperature_end"):
        validate_number(f"codebook.{name}", section[name], low=0, exclusive="low")
    for name in ("kl_weight", "kl_weight_start"):
        validate_number(f"loss.{name}", loss[name], low=0)
    validate_integer("codebook.temperature_steps", section.temperature_steps, low=0)
    validate_integer("loss.kl_steps", loss.kl_steps, low=0)
    networks = EncoderDecoder.from_config(config, spec, latent_channels=section.size)
    model = (CodecDiscreteVAE if networks.pixelcnn is None else DiscreteVAE)(
        **loss_fields(config, networks),
        codebook_size=section.size,
        latent_channels=config.model.latent_channels,
        temperature=Annealing(section.temperature, section.temperature_end, section.temperature_steps),
        kl_weight=Annealing(loss.kl_weight_start, loss.kl_weight, loss.kl_steps),
        frozen=frozen,
    )
    check_autoencoder(model)
    return model
