"""Gaussian latents: the variational autoencoder's (Kingma & Welling 2014). Shapes are any; a batch comes first."""

from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.typing import PRNGKeys

_LOG_VARIANCE = (-30.0, 20.0)  # what an untrained encoder says is kept finite, as latent diffusion's does


class Gaussian(NamedTuple):
    """A diagonal Gaussian for each example."""

    mean: Float[Array, "B ..."]
    log_variance: Float[Array, "B ..."]


def split(output: Float[Array, "B ... 2C"]) -> Gaussian:
    """The Gaussian whose mean and log-variance an encoder puts side by side."""
    mean, log_variance = jnp.split(output, 2, axis=-1)
    return Gaussian(mean, jnp.clip(log_variance, *_LOG_VARIANCE))


def draw(keys: PRNGKeys, q: Gaussian) -> Float[Array, "B ..."]:
    """A reparameterised draw: Kingma & Welling 2014, eq. 4. An example's noise is its key's."""
    noise = jax.vmap(lambda key: jax.random.normal(key, q.mean.shape[1:]))(keys)
    return q.mean + jnp.exp(q.log_variance / 2) * noise


def kl(q: Gaussian) -> Float[Array, "B ..."]:
    """KL(q || N(0, I)) in nats, value by value: Kingma & Welling 2014, app. B."""
    return 0.5 * (q.mean**2 + jnp.exp(q.log_variance) - 1.0 - q.log_variance)


def with_free_bits(kl: Float[Array, "B ... C"], bits: float) -> Float[Array, "B"]:
    """The KL of each example in nats, no channel of which counts for less than `bits`: Kingma et al. 2016, eq. 15.

    A channel's KL is summed over positions; the paper takes the batch's mean before the maximum, here every example has
    its own, so that nothing depends on the batch.
    """
    by_channel = kl.reshape(kl.shape[0], -1, kl.shape[-1]).sum(axis=1)
    return jnp.maximum(by_channel, bits * jnp.log(2.0)).sum(axis=-1)


def log_density(z: Float[Array, "B ..."], q: Gaussian) -> Float[Array, "B"]:
    """log q(z) in nats."""
    values = -0.5 * (jnp.log(2 * jnp.pi) + q.log_variance + (z - q.mean) ** 2 / jnp.exp(q.log_variance))
    return values.reshape(values.shape[0], -1).sum(axis=-1)
