"""Variational autoencoders (Kingma & Welling 2014), and latent diffusion's KL-regularised first stage by its config.

The loss is the negative ELBO in nats a value, its KL weighted by `loss.beta` (Higgins et al. 2017) and, channel by
channel, not counted below `loss.free_bits` (Kingma et al. 2016). Latent diffusion's has beta 1e-6, the likelihood l1,
and a discriminator.
"""

import math

import jax
from jax import lax
from jax import numpy as jnp

from diffjax.diffusion.sampling import fold_in, noise_of, split
from diffjax.errors import checked_number, checked_whole
from diffjax.latents import gaussian, statistics
from diffjax.models.autoencoders.encoder_decoder import Coder, Params
from diffjax.models.autoencoders.objective import Attempt, make_objective
from diffjax.models.pixels import to_unit_range
from diffjax.models.settings import make_settings
from diffjax.typing import Codec, ImageSpec, System


def build(config, spec: ImageSpec, **frozen: Params) -> System:
    """The autoencoder of `config` for images of `spec`; `features` of a network are for the perceptual loss.

    Raises UserError for what does not exist or does not fit.
    """
    channels = checked_whole("model.latent_channels", config.model.latent_channels)
    coder = Coder.from_config(config, spec, encoded=2 * channels, moments=2)
    for name in ("beta", "free_bits"):
        checked_number(f"loss.{name}", config.loss[name], low=0)
    latent_shape = (*coder.grid, channels)
    values = math.prod(coder.shape)
    bits = 1.0 / math.log(2.0)

    def init(key):
        params = coder.init(key, jnp.zeros((1, *latent_shape)))
        return {"params": {"model": params}, "latents": statistics.init()}

    def attempt(params, variables, batch, keys, moment):
        noise_keys, keys = split(keys)
        encoder_keys, decoder_keys = split(keys)
        x = batch["image"]
        q = gaussian.split(coder.encode(params, x, encoder_keys))
        z = gaussian.draw(noise_keys, q)
        nats = gaussian.kl(q)
        cost = config.loss.beta * gaussian.with_free_bits(nats, config.loss.free_bits) / values
        output = coder.decode(params, z, x, decoder_keys)
        kl = bits * nats.reshape(len(nats), -1).sum(axis=-1) / values
        metrics = {"kl": kl}
        if coder.likelihood.exact:
            nll = bits * coder.likelihood.nll(x, output)
            metrics |= {"nll": nll, "bits_per_dim": nll + kl}
        return Attempt(z, output, cost, metrics, {"latents": statistics.moved(variables["latents"], q.mean, moment)})

    def codec(variables) -> Codec:
        params, scale = variables["params"]["model"], statistics.scale(variables["latents"])
        return Codec(
            encode=lambda x: gaussian.split(coder.encode(params, x)).mean * scale,
            decode=lambda z: coder.reconstruct(params, z / scale),
            shape=latent_shape,
            scale=scale,
        )

    def sample(variables, keys, condition, plan):
        first, later = split(keys)
        z = plan["temperature"] * noise_of(first, latent_shape)
        return coder.draw(variables["params"]["model"], later, z)

    def likelihood(variables, keys, batch, samples):
        """The ELBO, its terms, and the importance-weighted bound of `samples` draws: Burda et al. 2016, eq. 8."""
        params, x = variables["params"]["model"], to_unit_range(batch["image"])
        q = gaussian.split(coder.encode(params, x))
        prior = gaussian.Gaussian(jnp.zeros_like(q.mean), jnp.zeros_like(q.mean))

        def weigh(carry, i):
            z = gaussian.draw(fold_in(keys, i), q)
            nll = values * coder.likelihood.nll(x, coder.decode(params, z, x))
            weight = gaussian.log_density(z, prior) - gaussian.log_density(z, q) - nll
            return (carry[0] + nll / samples, jnp.logaddexp(carry[1], weight)), None

        start = jnp.zeros(len(x)), jnp.full(len(x), -jnp.inf)
        (nll, weights), _ = lax.scan(weigh, start, jnp.arange(samples))
        kl = gaussian.kl(q).reshape(len(x), -1).sum(axis=-1)
        nats = {"elbo": nll + kl, "nll": nll, "kl": kl, "importance_weighted": jnp.log(samples) - weights}
        return jax.tree.map(lambda value: bits * value / values, nats)

    def plan(sampler_config, **overrides):
        made = make_settings("vae", {"temperature": 1.0}, sampler_config, **overrides)
        checked_number("sampler.temperature", float(made["temperature"]), low=0)
        return made

    if "sampler" in config:
        plan(config.sampler)  # what does not fit is refused here, before anything is trained
    return System(
        objective=make_objective(config, spec, coder, init, attempt),
        classes=0,
        plan=plan,
        sample=sample,
        codec=codec if coder.pixelcnn is None else None,
        likelihood=likelihood if coder.likelihood.exact else None,
        frozen=frozen,
    )
