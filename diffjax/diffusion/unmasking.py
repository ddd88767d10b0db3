"""Samplers of masked diffusion: which proposed tokens a step keeps. A public function is a choice a config can name."""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffjax.diffusion.masked import UnmaskingStep, num_masked_after


def ancestral_unmasking(
    key: Key[Array, ""],
    log_p: Float[Array, " N"],
    masked: Bool[Array, " N"],
    total: Int[Array, ""],
    step: UnmaskingStep,
) -> Bool[Array, " N"]:
    """Keeps each token with the probability of the exact posterior, (alpha_s - alpha_t) / (1 - alpha_t).

    With many steps, which keep one token at a time, samples have the distribution that the network predicts.

    Reference: MD4 (Shi et al. 2024), ancestral sampling; MDLM (Sahoo et al. 2024).
    """
    return jax.random.bernoulli(key, 1 - step.next_fraction / step.fraction, masked.shape)


def confidence(
    key: Key[Array, ""],
    log_p: Float[Array, " N"],
    masked: Bool[Array, " N"],
    total: Int[Array, ""],
    step: UnmaskingStep,
    *,
    choice_temperature: Float[Array, ""] | float = 4.5,
) -> Bool[Array, " N"]:
    """Keeps the most probable tokens, in a number that the schedule gives.

    Gumbel noise on the log-probabilities, of scale `choice_temperature` times the fraction of steps that follow, makes
    the choice random in the first steps and greedy in the last. 0: greedy.

    Reference: MaskGIT (Chang et al. 2022), section 3.2, and its code.
    """
    noise = choice_temperature * step.remaining * jax.random.gumbel(key, masked.shape)
    score = jnp.where(masked, log_p + noise, jnp.inf)
    rank = jnp.argsort(jnp.argsort(score))  # the masked tokens have the lowest ranks
    return rank >= num_masked_after(step, total, masked.sum())
