"""Sampling of tokens from logits: temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020).

All three may be traced scalars, so that one compilation serves a sweep over them.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from diffjax.typing import PRNGKey

Number = Float[Array, ""] | float
Count = Int[Array, ""] | int


def apply_filters(
    logits: Float[Array, "... K"], *, temperature: Number = 1.0, top_k: Count = 0, top_p: Number = 1.0
) -> Float[Array, "... K"]:
    """Scales logits and sets those of excluded tokens to -inf.

    Args:
      logits: unnormalised log-probabilities of K tokens.
      temperature: > 0; the logits are divided by it.
      top_k: number of the most probable tokens to keep; 0, or K and above: all.
      top_p: of those, keeps the fewest most probable tokens whose probabilities sum to at least this (nucleus); 1: all.
        At least one token is kept.

    Returns:
      Logits of the distribution to sample from, float32. Of tokens with equal logits the first ranks highest, as in
      argmax.

    Reference: Holtzman et al. 2020, sec. 3.1.
    """
    logits = logits.astype(jnp.float32) / temperature
    is_unfiltered = jnp.less_equal(top_k, 0) & jnp.greater_equal(top_p, 1.0)  # then nothing is sorted
    return lax.cond(is_unfiltered, lambda x: x, lambda x: _filtered(x, top_k, top_p), logits)


def _filtered(logits: Float[Array, "... K"], top_k: Count, top_p: Number) -> Float[Array, "... K"]:
    """Sets the logits of tokens that top-k or top-p exclude to -inf."""
    rank = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    order = jnp.argsort(-logits, axis=-1, stable=True)
    descending = jnp.take_along_axis(logits, order, -1)

    keep = (rank < top_k) | jnp.less_equal(top_k, 0)
    p = jax.nn.softmax(jnp.where(keep, descending, -jnp.inf), -1)
    before = jnp.cumsum(p, -1) - p
    # Rounding may bring the sum before the last tokens to 1, so top_p = 1 needs its own case to keep them.
    keep &= (before < top_p) | jnp.greater_equal(top_p, 1.0) | (rank == 0)

    keep = jnp.take_along_axis(keep, jnp.argsort(order, -1), -1)
    return jnp.where(keep, logits, -jnp.inf)


def sample(
    key: PRNGKey,
    logits: Float[Array, "... K"],
    *,
    temperature: Number = 1.0,
    top_k: Count = 0,
    top_p: Number = 1.0,
) -> Int[Array, "..."]:
    """Samples the tokens of one example from filtered logits; consumes `key`. For the options see `apply_filters`."""
    return jax.random.categorical(key, apply_filters(logits, temperature=temperature, top_k=top_k, top_p=top_p))
