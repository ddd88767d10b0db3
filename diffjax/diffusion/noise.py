"""A level of noise, and what follows from a pair of levels. Everything here works on one example or broadcasts."""

from typing import NamedTuple

from jax import Array
from jax import numpy as jnp
from jaxtyping import Float


class Noise(NamedTuple):
    """The marginal q(x_t | x_0) = N(alpha x_0, sigma^2 I). A trajectory's levels are one Noise with leaves [N]."""

    t: Float[Array, "..."]  # the paper's time: 0 is the clean image, T the last level
    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]


def perturb(x0: Array, eps: Array, noise: Noise) -> Array:
    """Draws x_t = alpha x_0 + sigma eps: DDPM (Ho et al. 2020), eq. 4. `x0` and `eps` share any shape."""
    return noise.alpha * x0 + noise.sigma * eps


def log_snr(noise: Noise) -> Array:
    """log(alpha^2 / sigma^2), the log signal-to-noise ratio (Kingma et al. 2021, eq. 3); inf at the clean level."""
    return 2.0 * (jnp.log(noise.alpha) - jnp.log(noise.sigma))


def prior_std(noise: Noise) -> Array:
    """Standard deviation that x_T starts with at the first level: that of data of unit variance there.

    One for a variance-preserving process; sigma_max, up to 1 / (2 sigma_max), for an exploding one.
    """
    return jnp.sqrt(noise.alpha**2 + noise.sigma**2)


def implied_eps(x: Array, x0: Array, noise: Noise) -> Array:
    """The noise in x_t if its clean image is `x0`. Has no value at the clean level."""
    return (x - noise.alpha * x0) / noise.sigma


def transfer(x: Array, x0: Array, now: Noise, next: Noise) -> Array:
    """The point at `next` with the same clean image and the same noise: DDIM (Song et al. 2021), eq. 12 at eta = 0.

    It is a step of Euler's method on the probability-flow ODE d(x / alpha) = eps d(sigma / alpha) (ibid., eq. 14;
    Karras et al. 2022, eq. 4). Equals `x0` when `next` is clean; also carries an image up to more noise.
    """
    return next.alpha * x0 + next.sigma * implied_eps(x, x0, now)


def transition_variance(now: Noise, next: Noise) -> Array:
    """Variance of q(x_now | x_next) for next < now: sigma_now^2 - (alpha_now / alpha_next)^2 sigma_next^2.

    Between neighbouring steps of DDPM this is beta_t; it is also the square of DDIM's sigma-hat (Song et al. 2021,
    sec. 5). Never negative, whatever the rounding.
    """
    ratio = now.alpha / next.alpha
    return jnp.maximum(now.sigma**2 - ratio**2 * next.sigma**2, 0.0)


def posterior_variance(now: Noise, next: Noise) -> Array:
    """Variance of q(x_next | x_now, x_0): DDPM, eq. 7's beta-tilde for any two levels. Zero when `next` is clean."""
    return transition_variance(now, next) * (next.sigma / now.sigma) ** 2


def step_variances(before: Noise, now: Noise, next: Noise) -> tuple[Array, Array]:
    """Returns the small and the large variance of the step from `now` to `next`, neither of them zero.

    The step to the clean image has no posterior variance. That of the step before it, from `before` to `now`, takes its
    place, as in DDPM's code; where `before` is `now`, as there is no such step, the large variance does.
    """
    large = transition_variance(now, next)
    small = jnp.where(next.sigma == 0, posterior_variance(before, now), posterior_variance(now, next))
    return jnp.where(small > 0, small, large), large


def posterior_weights(now: Noise, next: Noise) -> tuple[Array, Array]:
    """The factors of x_now and x_0 in the mean of q(x_next | x_now, x_0): DDPM, eq. 7. (0, 1) when `next` is clean."""
    ratio = now.alpha / next.alpha
    return ratio * (next.sigma / now.sigma) ** 2, next.alpha * transition_variance(now, next) / now.sigma**2


def posterior_mean(x0: Array, x: Array, now: Noise, next: Noise) -> Array:
    """Mean of q(x_next | x_now = x, x_0): DDPM, eq. 7 for any two levels. Equals `x0` when `next` is clean."""
    x_weight, x0_weight = posterior_weights(now, next)
    return x_weight * x + x0_weight * x0
