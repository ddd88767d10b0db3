"""Learning-rate schedules after the warm-up. Each public function is a choice of `train.learning_rate_schedule`.

A schedule maps the number of updates since the warm-up to a learning rate. Options that the config supplies are `steps`
and `warmup`, the numbers of updates after the warm-up and within it.
"""

import math
from fractions import Fraction

import optax
from jax import numpy as jnp

from diffjax.errors import validate_number

_FIELD = "train.learning_rate_schedule"


def constant(peak: float) -> optax.Schedule:
    """Returns `peak` at every step."""
    return optax.constant_schedule(peak)


def cosine(peak: float, *, steps: int, end: float = 0.0) -> optax.Schedule:
    """Returns half a period of a cosine, from `peak` to `end * peak` at the last step.

    Reference: Loshchilov & Hutter 2017 (SGDR), equation 5, without restarts.
    """
    return optax.cosine_decay_schedule(peak, steps, alpha=_share("cosine: end", end))


def linear(peak: float, *, steps: int, end: float = 0.0) -> optax.Schedule:
    """Returns a line from `peak` to `end * peak` at the last step."""
    return optax.linear_schedule(peak, _share("linear: end", end) * peak, steps)


def inverse_sqrt(peak: float, *, warmup: int, timescale: float = 70_000.0) -> optax.Schedule:
    """Returns `peak / sqrt(max(t / timescale, 1))` at update t, counted from the first one of the warm-up.

    It does not depend on the number of training steps.

    Reference: Karras et al. 2024 (EDM2), `alpha_ref / sqrt(max(t / t_ref, 1))`; t_ref is 70,000 in its presets for
    ImageNet-512.
    """
    validate_number(f"{_FIELD}=inverse_sqrt: timescale", timescale, low=0, exclusive="low")
    return lambda step: peak / jnp.sqrt(jnp.maximum((step + warmup) / timescale, 1.0))


def warmup_stable_decay(
    peak: float, *, steps: int, warmup: int, decay: float = 0.2, end: float = 0.0
) -> optax.Schedule:
    """Returns `peak`, and in the last steps a line to `end * peak`.

    Before the decay, a run may be resumed with another number of steps.

    Args:
      decay: share of all training steps in which the learning rate decays, rounded up to whole steps; at most those
        after the warm-up.

    Reference: Hu et al. 2024 (MiniCPM); Hägele et al. 2024, "constant learning rate and cooldowns".
    """
    validate_number(f"{_FIELD}=warmup_stable_decay: decay", decay, low=0, high=1, exclusive="low")
    share = Fraction(str(decay))  # in floating point, 0.07 * 100 is above 7
    decay_steps = min(math.ceil(share * (warmup + steps)), steps)
    line = optax.linear_schedule(peak, _share("warmup_stable_decay: end", end) * peak, decay_steps)
    return optax.join_schedules([optax.constant_schedule(peak), line], [steps - decay_steps])


def _share(option: str, value: float) -> float:
    return validate_number(f"{_FIELD}={option}", value, low=0, high=1)
