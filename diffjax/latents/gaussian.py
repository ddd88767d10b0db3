"""Gaussian latents of the variational autoencoder (Kingma & Welling 2014). Arrays are [B, ...] of any rank."""

from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.typing import PRNGKeys

_LOG_VARIANCE = (-30.0, 20.0)  # bounds, as in latent diffusion: keeps the output of an untrained encoder finite


class Gaussian(NamedTuple):
    """A diagonal Gaussian for each example."""

    mean: Float[Array, "B ..."]
    log_variance: Float[Array, "B ..."]


def split(output: Float[Array, "B ... 2C"]) -> Gaussian:
    """Splits the output of an encoder into mean and log-variance, each with half of the channels."""
    mean, log_variance = jnp.split(output, 2, axis=-1)
    return Gaussian(mean, jnp.clip(log_variance, *_LOG_VARIANCE))


def sample(keys: PRNGKeys, q: Gaussian) -> Float[Array, "B ..."]:
    """Samples from `q` by reparameterisation, with one key per example; consumes `keys`.

    Reference: Kingma & Welling 2014, eq. 4.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, q.mean.shape[1:]))(keys)
    return q.mean + jnp.exp(q.log_variance / 2) * noise


def kl(q: Gaussian) -> Float[Array, "B ..."]:
    """Computes KL(q || N(0, I)) in nats, elementwise.

    Reference: Kingma & Welling 2014, app. B.
    """
    return 0.5 * (q.mean**2 + jnp.exp(q.log_variance) - 1.0 - q.log_variance)


def with_free_bits(kl: Float[Array, "B ... C"], bits: float) -> Float[Array, " B"]:
    """Sums the KL of each example, with a lower bound for each channel.

    The paper averages over the batch before it takes the maximum. Here each example has its own maximum, so that its
    loss does not depend on the batch.

    Args:
      kl: in nats, elementwise.
      bits: lower bound for the KL of a channel, summed over positions; 0: no bound.

    Returns:
      The KL of each example in nats.

    Reference: Kingma et al. 2016, eq. 15.
    """
    by_channel = kl.reshape(kl.shape[0], -1, kl.shape[-1]).sum(axis=1)
    return jnp.maximum(by_channel, bits * jnp.log(2.0)).sum(axis=-1)


def log_density(z: Float[Array, "B ..."], q: Gaussian) -> Float[Array, " B"]:
    """Computes log q(z) of each example in nats."""
    values = -0.5 * (jnp.log(2 * jnp.pi) + q.log_variance + (z - q.mean) ** 2 / jnp.exp(q.log_variance))
    return values.reshape(values.shape[0], -1).sum(axis=-1)
