"""Rules of classifier-free guidance. A public function of this file is a rule that a config can name.

A rule maps the estimates with and without the condition to the guided estimate of x_0. It returns the running average
of their differences too, the memory of rules with momentum: see `guided_steps.with_memory`. Lengths and inner products
are per example.
"""

from typing import NamedTuple

from jax import Array
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.noise import Noise


class Estimates(NamedTuple):
    """The estimates that a rule combines, and the level that they are of.

    Attributes:
      x: noised examples.
      noise: their noise level, or levels, as for a denoiser.
      conditional: estimate of x_0 with the condition.
      unconditional: estimate with the null condition.
      average: running average of the steps before; None: no memory.
    """

    x: Float[Array, "B ..."]
    noise: Noise
    conditional: Float[Array, "B ..."]
    unconditional: Float[Array, "B ..."]
    average: Float[Array, "B ..."] | None = None


class Guided(NamedTuple):
    """A guided estimate of x_0, and the running average for the next step."""

    x0: Float[Array, "B ..."]
    average: Float[Array, "B ..."] | None


def extrapolation(estimates: Estimates, scale: Array | float) -> Guided:
    """Guides by unconditional + scale (conditional - unconditional).

    Reference: Ho & Salimans 2022, eq. 6.
    """
    _, _, conditional, unconditional, average = estimates
    return Guided(unconditional + scale * (conditional - unconditional), average)


def adaptive_projected(
    estimates: Estimates,
    scale: Array | float,
    *,
    eta: Array | float = 0.0,
    norm: Array | float = 0.0,
    momentum: Array | float = 0.0,
) -> Guided:
    """Adaptive projected guidance: conditional + (scale - 1) update, with less oversaturation at large scales.

    The update is conditional - unconditional, plus momentum times the running average of the updates; then shortened to
    `norm`; then its part along the conditional estimate is multiplied by `eta`.

    Args:
      estimates: the estimates.
      scale: s, as for `extrapolation`, which this rule equals at eta 1, norm 0 and momentum 0.
      eta: factor of the parallel part, which saturates images.
      norm: r, the largest length of the update, which grows with the square root of the number of values; 0: no limit.
      momentum: beta in (-1, 1); negative values weaken what earlier steps pushed.

    Reference: APG (Sadat et al. 2024), algorithm 1.
    """
    difference = estimates.conditional - estimates.unconditional
    if estimates.average is not None:
        difference = difference + momentum * estimates.average
    length = jnp.sqrt(_inner(difference, difference))
    update = difference * jnp.where((norm > 0) & (length > norm), norm / jnp.maximum(length, 1e-12), 1.0)
    parallel = _along(update, estimates.conditional)
    return Guided(estimates.conditional + (scale - 1.0) * (update - parallel + eta * parallel), difference)


def zero_star(
    estimates: Estimates,
    scale: Array | float,
    *,
    times: Float[Array, " N"],
    zero_steps: Array | int = 1,
) -> Guided:
    """CFG-Zero*: the unconditional velocity is scaled to fit the conditional one; the first steps do not move.

    The velocity of the rectified flow through x_t is (y - x_0) (alpha + sigma) / sigma, where y = x_t / (alpha + sigma)
    is x_t on that flow. So the rule holds for any noise schedule.

    Args:
      estimates: the estimates.
      scale: s, as for `extrapolation`.
      times: the time grid.
      zero_steps: number of first steps with velocity 0, which return x_0 = y: zero-init.

    Reference: CFG-Zero* (Fan et al. 2025), algorithm 1.
    """
    x, noise, conditional, unconditional, average = estimates
    y = x / (noise.alpha + noise.sigma)
    with_condition, without = y - conditional, y - unconditional
    without = _along(with_condition, without)
    x0 = y - (without + scale * (with_condition - without))
    zero_steps = jnp.asarray(zero_steps, jnp.int32)
    is_first = (zero_steps > 0) & (noise.t >= times[jnp.maximum(zero_steps - 1, 0)])
    return Guided(jnp.where(is_first, y, x0), average)


def _inner(a: Float[Array, "B ..."], b: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _along(a: Float[Array, "B ..."], b: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Projects `a` on `b`; 0 where `b` is 0."""
    return _inner(a, b) / jnp.maximum(_inner(b, b), 1e-12) * b
