"""DALL-E's discrete VAE (Ramesh et al. 2021, sec. 2.1 and app. A): codes relaxed by Gumbel-softmax.

The loss is reconstruction plus `loss.kl_weight` times the KL of the codes to the uniform distribution; both that weight
and the temperature are annealed along half a cosine.
"""

import math

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.diffusion.sampling import split
from diffjax.errors import checked_number, checked_whole
from diffjax.latents import codebook, gumbel_softmax, statistics
from diffjax.models.autoencoders.encoder_decoder import Coder, Params
from diffjax.models.autoencoders.objective import Attempt, make_objective
from diffjax.typing import Codec, ImageSpec, System


def build(config, spec: ImageSpec, **frozen: Params) -> System:
    """The autoencoder of `config` for images of `spec`; `features` of a network are for the perceptual loss.

    Raises UserError for what does not exist or does not fit.
    """
    c, loss, size = config.codes, config.loss, config.codes.size
    checked_whole("codes.size", size, low=2)
    checked_whole("model.latent_channels", config.model.latent_channels)
    for name in ("temperature", "temperature_end"):
        checked_number(f"codes.{name}", c[name], low=0, open_at="low")
    for name in ("kl_weight", "kl_weight_start"):
        checked_number(f"loss.{name}", loss[name], low=0)
    checked_whole("codes.temperature_steps", c.temperature_steps, low=0)
    checked_whole("loss.kl_steps", loss.kl_steps, low=0)
    coder = Coder.from_config(config, spec, encoded=size)
    values, bits = math.prod(coder.shape), 1.0 / math.log(2.0)

    def init(key):
        coder_key, book_key = jax.random.split(key)
        latent = jnp.zeros((1, *coder.grid, config.model.latent_channels))
        book = jax.random.normal(book_key, (size, config.model.latent_channels))
        params = {**coder.init(coder_key, latent), "book": book}
        return {
            "params": {"model": params},
            "codes": {"seen": jnp.zeros((1, size))},
            "latents": statistics.init(),
        }

    def attempt(params, variables, batch, keys, moment):
        gumbel_keys, keys = split(keys)
        encoder_keys, decoder_keys = split(keys)
        temperature = annealed(moment.step, c.temperature, c.temperature_end, c.temperature_steps)
        weight = annealed(moment.step, loss.kl_weight_start, loss.kl_weight, loss.kl_steps)
        logits = coder.encode(params, batch["image"], encoder_keys)
        latent = gumbel_softmax.relaxed(gumbel_keys, logits, temperature) @ params["book"]
        nats = gumbel_softmax.kl_to_uniform(logits).reshape(len(logits), -1).sum(axis=-1)
        seen = codebook.seen(variables["codes"], jnp.argmax(logits, axis=-1)[..., None], moment)
        metrics = {"kl": bits * nats / values, "temperature": temperature, "kl_weight": weight}
        updated = {"codes": {"seen": seen}, "latents": statistics.moved(variables["latents"], latent, moment)}
        output = coder.decode(params, latent, batch["image"], decoder_keys)
        return Attempt(latent, output, weight * nats / values, metrics, updated)

    def codec(variables) -> Codec:
        params, scale = variables["params"]["model"], statistics.scale(variables["latents"])

        def to_codes(x):
            return (jnp.argmax(coder.encode(params, x), axis=-1)[..., None],)

        def from_codes(codes):
            return coder.reconstruct(params, params["book"][codes[0][..., 0]])

        return Codec(
            encode=lambda x: params["book"][to_codes(x)[0][..., 0]] * scale,
            decode=lambda z: coder.reconstruct(params, z / scale),
            shape=(*coder.grid, config.model.latent_channels),
            scale=scale,
            to_codes=to_codes,
            from_codes=from_codes,
            grids=((*coder.grid, 1),),
            vocabulary=size,
        )

    def summarize(variables):
        return codebook.usage(variables["codes"]["seen"])

    objective = make_objective(config, spec, coder, init, attempt, summarize=summarize)
    return System(objective, classes=0, codec=codec if coder.pixelcnn is None else None, frozen=frozen)


def annealed(step: Array, start: float, end: float, steps: int) -> Float[Array, ""]:
    """From `start` to `end` in `steps` along half a cosine, then `end`."""
    share = jnp.clip(step / max(steps, 1), 0.0, 1.0) if steps else 1.0
    return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * share))
