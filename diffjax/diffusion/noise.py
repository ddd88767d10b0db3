"""Noise levels, and the Gaussians that follow from pairs of them. All functions are elementwise and broadcast."""

from typing import NamedTuple

import chex
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float


class Noise(NamedTuple):
    """The marginal q(x_t | x_0) = N(alpha x_0, sigma^2 I). The levels of a trajectory are one Noise with leaves [N].

    Attributes:
      t: timestep; 0 is the clean image, T the last level.
      alpha: factor of the signal.
      sigma: standard deviation of the noise.
    """

    t: Float[Array, "..."]
    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]


def perturb(x0: Array, eps: Array, noise: Noise) -> Array:
    """Computes x_t = alpha x_0 + sigma eps; `x0` and `eps` share any shape.

    Reference: DDPM (Ho et al. 2020), eq. 4.
    """
    chex.assert_equal_shape((x0, eps))
    return noise.alpha * x0 + noise.sigma * eps


def for_examples(values: Float[Array, " B"] | Float[Array, ""], x: Float[Array, "B ..."]) -> Array:
    """Returns a value per example, or one for all, with as many axes as `x`: [B, 1, ...] or [1, 1, ...]."""
    return jnp.reshape(values, (-1, *[1] * (x.ndim - 1)))


def log_snr(noise: Noise) -> Array:
    """Computes log(alpha^2 / sigma^2), the log signal-to-noise ratio; inf at the clean level.

    Reference: VDM (Kingma et al. 2021), eq. 2.
    """
    return 2.0 * (jnp.log(noise.alpha) - jnp.log(noise.sigma))


def initial_std(noise: Noise) -> Array:
    """Returns the standard deviation of the initial x_T: that of noised data of unit variance.

    1 for a variance-preserving process; sigma_max, up to 1 / (2 sigma_max), for an exploding one.
    """
    return jnp.sqrt(noise.alpha**2 + noise.sigma**2)


def flow_time(noise: Noise) -> Array:
    """Returns the time in [0, 1] at which a rectified flow has the same signal-to-noise ratio.

    There x / (alpha + sigma) = (1 - time) x_0 + time eps.

    Reference: Liu et al. 2023, "Flow straight and fast", eq. 1.
    """
    return noise.sigma / (noise.alpha + noise.sigma)


def eps_from_x0(x: Array, x0: Array, noise: Noise) -> Array:
    """Computes the noise in x_t for the clean image `x0`; undefined at the clean level."""
    return (x - noise.alpha * x0) / noise.sigma


def ddim_step(x: Array, x0: Array, now: Noise, next: Noise) -> Array:
    """Moves x_t to level `next` with the same clean image and the same noise.

    Equals a step of Euler's method on the probability-flow ODE d(x / alpha) = eps d(sigma / alpha). Returns `x0` if
    `next` is clean. Also moves to noisier levels.

    Reference: DDIM (Song et al. 2021), eq. 12 at eta = 0, and eq. 14; EDM (Karras et al. 2022), eq. 4.
    """
    return next.alpha * x0 + next.sigma * eps_from_x0(x, x0, now)


def transition_variance(now: Noise, next: Noise) -> Array:
    """Computes the variance of q(x_now | x_next) for next < now: sigma_now^2 - (alpha_now / alpha_next)^2 sigma_next^2.

    Between neighbouring steps of DDPM it is beta_t; it is also the square of DDIM's sigma-hat. At least 0, whatever the
    rounding.

    Reference: DDIM, sec. 5.
    """
    ratio = now.alpha / next.alpha
    return jnp.maximum(now.sigma**2 - ratio**2 * next.sigma**2, 0.0)


def posterior_variance(now: Noise, next: Noise) -> Array:
    """Computes the variance of q(x_next | x_now, x_0), for any two levels; zero if `next` is clean.

    Reference: DDPM, eq. 7 (beta-tilde).
    """
    return transition_variance(now, next) * (next.sigma / now.sigma) ** 2


def step_variances(before: Noise, now: Noise, next: Noise) -> tuple[Array, Array]:
    """Returns the small and the large variance of the step from `now` to `next`, both above zero.

    The posterior of the step to the clean image has variance zero. Its small variance is that of the step before it,
    from `before` to `now`, as in DDPM's code. Without such a step, `before` is `now` and both variances are the large
    one.
    """
    large = transition_variance(now, next)
    small = jnp.where(next.sigma == 0, posterior_variance(before, now), posterior_variance(now, next))
    return jnp.where(small > 0, small, large), large


def posterior_weights(now: Noise, next: Noise) -> tuple[Array, Array]:
    """Returns the factors of x_now and x_0 in the mean of q(x_next | x_now, x_0); (0, 1) if `next` is clean.

    Reference: DDPM, eq. 7.
    """
    ratio = now.alpha / next.alpha
    return ratio * (next.sigma / now.sigma) ** 2, next.alpha * transition_variance(now, next) / now.sigma**2


def posterior_mean(x0: Array, x: Array, now: Noise, next: Noise) -> Array:
    """Computes the mean of q(x_next | x_now = x, x_0), for any two levels; equals `x0` if `next` is clean.

    Reference: DDPM, eq. 7.
    """
    x_weight, x0_weight = posterior_weights(now, next)
    return x_weight * x + x0_weight * x0
