"""Masked diffusion of tokens: the forward process, its bound of the likelihood, and sampling by unmasking.

The forward process replaces each token by a mask token, independently with probability 1 - alpha(t). A network predicts
the distribution of each masked token from the others. It does not read the time, as the number of masked tokens
determines what it has to predict.

References:
  MD4 (Shi et al. 2024), "Simplified and generalized masked diffusion for discrete data".
  MaskGIT (Chang et al. 2022), "MaskGIT: Masked generative image transformer".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffjax.diffusion.random import Keys, fold_in_each, split_each

Scalar = Float[Array, ""]
MaskingSchedule = Callable[[Array], Array]  # times [0, 1] -> 1 - alpha [0, 1], a choice of masking_schedules.py
Tokens = Int[Array, "B N"]
FIRST_TIME = 1e-4  # of training, as the weight of the bound is infinite at 0


class UnmaskingStep(NamedTuple):
    """A step of sampling.

    Attributes:
      fraction: expected fraction 1 - alpha of tokens that are masked at the start of the step.
      next_fraction: the same at its end.
      remaining: fraction of the steps that follow this one.
    """

    fraction: Scalar
    next_fraction: Scalar
    remaining: Scalar


# (key, log-probabilities of the proposed tokens [N], whether a token is masked [N], number of tokens that were masked
# before the first step, step) -> which tokens become known [N]; for one example. A choice of unmasking.py.
Unmask = Callable[[Key[Array, ""], Float[Array, " N"], Bool[Array, " N"], Int[Array, ""], UnmaskingStep], Array]


def elbo_weight(schedule: MaskingSchedule, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns -alpha'(t) / (1 - alpha(t)), the weight of the cross-entropy of masked tokens in the bound.

    The integral over t of weight times expected cross-entropy, summed over the masked tokens, is an upper bound of the
    negative log-likelihood. It does not depend on the schedule.

    Args:
      t: times in (0, 1].

    Reference: MD4, the objective in continuous time.
    """
    probability, slope = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    return slope / probability


def spread_times(offset: Scalar, index: Int[Array, " B"], count: int) -> Float[Array, " B"]:
    """Returns times in [FIRST_TIME, 1], one in each of `count` equal intervals for `count` successive indices.

    This lowers the variance of a mean over a batch.

    Args:
      offset: uniform in [0, 1), shared by the batch.

    Reference: MD4, low-discrepancy sampling of times; Kingma et al. 2021, "Variational diffusion models", app. I.1.
    """
    return FIRST_TIME + (1 - FIRST_TIME) * ((offset + index / count) % 1)


def mask_each(keys: Keys, tokens: Tokens, probability: Float[Array, " B"], mask_token: int) -> Tokens:
    """Samples the forward process: replaces each token by `mask_token` with a probability. Consumes `keys`."""
    is_masked = jax.vmap(lambda key, p: jax.random.bernoulli(key, p, tokens.shape[1:]))(keys, probability)
    return jnp.where(is_masked, mask_token, tokens)


def mask_count_each(keys: Keys, tokens: Tokens, count: Int[Array, " B"], mask_token: int) -> Tokens:
    """Replaces `count` tokens of each example, uniformly at random, by `mask_token`. Consumes `keys`."""
    order = jax.vmap(lambda key: jax.random.permutation(key, tokens.shape[1]))(keys)
    return jnp.where(order < count[:, None], mask_token, tokens)


def elbo_of_count(
    keys: Keys,
    nats_of_masked: Callable[[Tokens], Float[Array, "B N"]],
    tokens: Tokens,
    mask_token: int,
    samples: int,
) -> Float[Array, " B"]:
    """Estimates the bound of the negative log-likelihood, in nats per example.

    The integral of the bound over times, for a given number m of masked tokens, is 1/m times their cross-entropy. So
    the bound is N times the mean cross-entropy of m random masked tokens, with m uniform on {1, ..., N}. Unlike the
    weight at a random time, this has a finite variance.

    Args:
      keys: [B], consumed.
      nats_of_masked: maps tokens, some of them masked, to the cross-entropy of each original token in nats.
      tokens: original tokens.
      mask_token: value of the mask token.
      samples: number of values of m, in equal intervals, whose mean is the estimate.

    Reference: MD4, on the equivalence with any-order autoregressive models (Hoogeboom et al. 2022).
    """
    length = tokens.shape[1]
    offset_keys, mask_keys = split_each(keys)
    offset = jax.vmap(jax.random.uniform)(offset_keys)

    def estimate(sample: Int[Array, ""]) -> Float[Array, " B"]:
        fraction = (offset + sample / samples) % 1
        count = jnp.minimum(1 + jnp.floor(length * fraction).astype(jnp.int32), length)
        masked_tokens = mask_count_each(fold_in_each(mask_keys, sample), tokens, count, mask_token)
        nats = jnp.where(masked_tokens == mask_token, nats_of_masked(masked_tokens), 0.0)
        return length * nats.sum(axis=-1) / count

    return lax.map(estimate, jnp.arange(samples)).mean(axis=0)


def masked_fractions(schedule: MaskingSchedule, steps: int, capacity: int | None = None) -> Float[Array, " C"]:
    """Returns 1 - alpha before each of `steps` steps of equal length in time, and after the last: from 1 to 0.

    Args:
      capacity: number of steps to pad to, with zeros; None: `steps`.

    Returns:
      A decreasing array of capacity + 1 values.
    """
    between = schedule(1 - jnp.arange(1, steps) / steps)
    after = max(capacity or steps, steps) - steps
    return jnp.concatenate([jnp.ones(1), between, jnp.zeros(1 + after)])


def num_masked_after(step: UnmaskingStep, total: Int[Array, ""], masked: Int[Array, ""]) -> Int[Array, ""]:
    """Returns the number of tokens that are masked after a step.

    It is floor((1 - alpha) total), and at least one token less than before.

    Args:
      total: number of tokens that were masked before the first step.
      masked: number of tokens that are masked before this step.

    Reference: MaskGIT, section 3.2, with the rounding of its code.
    """
    scheduled = jnp.floor(step.next_fraction * total + 1e-4).astype(jnp.int32)  # 1e-4: rounding of whole numbers
    return jnp.clip(scheduled, 0, jnp.maximum(masked - 1, 0))


def sample(
    keys: Keys,
    predict: Callable[[Tokens], Float[Array, "B N K"]],
    unmask: Unmask,
    tokens: Tokens,
    fractions: Float[Array, " C"],
    steps: Int[Array, ""] | int,
    *,
    mask_token: int,
    sample_tokens: Callable[[Keys, Float[Array, "B N K"]], Tokens],
) -> Tokens:
    """Samples the masked tokens, some in each step.

    Each step proposes a token at every masked position, and keeps some of them.

    Args:
      keys: [B], consumed.
      predict: maps tokens, some of them masked, to logits.
      unmask: the choice of tokens that a step keeps.
      tokens: initial tokens; those that are not `mask_token` do not change.
      fractions: of `masked_fractions`, at least steps + 1 values.
      steps: number of steps; may be traced.
      mask_token: value of the mask token.
      sample_tokens: (keys, logits) -> proposed tokens.

    Returns:
      Tokens, none of them masked.
    """
    total = (tokens == mask_token).sum(axis=1)

    def body(i: Int[Array, ""], tokens: Tokens) -> Tokens:
        token_keys, order_keys = split_each(fold_in_each(keys, i))
        step = UnmaskingStep(fractions[i], fractions[i + 1], 1 - (i + 1) / steps)
        logits, masked = predict(tokens), tokens == mask_token
        proposed = sample_tokens(token_keys, logits)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), proposed[..., None], axis=-1)[..., 0]
        keeps = jax.vmap(unmask, (0, 0, 0, 0, None))(order_keys, log_p, masked, total, step)
        return jnp.where(masked & keeps, proposed, tokens)

    return lax.fori_loop(0, steps, body, tokens)
