"""Gumbel-softmax relaxation of discrete codes, as in DALL-E's autoencoder (Ramesh et al. 2021, sec. 2.1)."""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.typing import PRNGKeys


def sample_relaxed(
    keys: PRNGKeys, logits: Float[Array, "B h w K"], temperature: Float[Array, ""] | float
) -> Float[Array, "B h w K"]:
    """Samples relaxed one-hot codes, which tend to one-hot as `temperature` falls.

    Args:
      keys: [B], consumed.
      logits: of K codes at each position.
      temperature: > 0.

    Returns:
      Weights of the codes, which sum to 1 at each position.

    Reference: Jang et al. 2017, eq. 2; Maddison et al. 2017.
    """
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    return jax.nn.softmax((logits + gumbel) / temperature, axis=-1)


def kl_to_uniform(logits: Float[Array, "B h w K"]) -> Float[Array, "B h w"]:
    """Computes KL(softmax(logits) || uniform over K codes) in nats: log K minus the entropy."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return jnp.sum(jnp.exp(log_p) * log_p, axis=-1) + jnp.log(logits.shape[-1])
