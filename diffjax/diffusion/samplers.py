"""How one level of noise becomes the next. A public function of this file is a sampler a config can name.

A sampler's keyword arguments are its options, and numbers among them may be traced. Steps work on a batch [B, ...]
whose examples stand at one level, with a key each.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array
from jax import numpy as jnp

from diffjax.diffusion import variance as variances
from diffjax.diffusion.noise import Noise, posterior_mean, posterior_variance, transition_variance


class Sampler(NamedTuple):
    """A numerical method. Every grid ends at the clean level, where a step returns x_0 and adds no noise."""

    init: Callable  # (x) -> carry: the history of a multi-step method, or ()
    step: Callable  # (keys [B], denoiser, carry, x [B, ...], now: Noise, next: Noise) -> (x, carry)


def ancestral(*, variance: Callable[[Noise, Noise], Array] = variances.fixed_small) -> Sampler:
    """DDPM (Ho et al. 2020), algorithm 2, between any two levels: the posterior's mean, noise of `variance`."""

    def step(keys, denoiser, carry, x, now, next):
        mean = posterior_mean(denoiser(x, now).x0, x, now, next)
        return mean + _unless_clean(jnp.sqrt(variance(now, next)), next) * _normal_like(keys, x), carry

    return Sampler(lambda x: (), step)


def ddim(*, eta: Array | float = 0.0, sigma_hat: Array | bool = False) -> Sampler:
    """DDIM (Song et al. 2021), eq. 12: deterministic at eta = 0, the ancestral sampler at eta = 1 (eq. 16).

    `sigma_hat` instead adds noise of DDPM's larger variance to the direction of eta (sec. 5); with eta = 1 that is the
    ancestral sampler with `fixed_large`, the last rows of the paper's table 1.
    """

    def step(keys, denoiser, carry, x, now, next):
        x0 = denoiser(x, now).x0
        eps = (x - now.alpha * x0) / now.sigma
        std = eta * jnp.sqrt(posterior_variance(now, next))
        direction = jnp.sqrt(jnp.maximum(next.sigma**2 - std**2, 0.0))
        noise_std = jnp.where(jnp.asarray(sigma_hat, bool), jnp.sqrt(transition_variance(now, next)), std)
        return next.alpha * x0 + direction * eps + _unless_clean(noise_std, next) * _normal_like(keys, x), carry

    return Sampler(lambda x: (), step)


def _unless_clean(std: Array, next: Noise) -> Array:
    return jnp.where(next.sigma > 0, std, 0.0)


def _normal_like(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
