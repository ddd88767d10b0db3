"""Samplers of first order: one evaluation per step."""

from collections.abc import Callable

import jax
from jax import Array
from jax import numpy as jnp

from diffjax.diffusion import variance as variances
from diffjax.diffusion.noise import (
    Noise,
    ddim_step,
    eps_from_x0,
    flow_time,
    posterior_mean,
    posterior_variance,
    step_variances,
    transition_variance,
)
from diffjax.diffusion.samplers.base import (
    Sampler,
    estimate_x0,
    guided_x0,
    has_signal,
    lowered,
    no_history,
    unless_clean,
)


def ancestral(*, variance: Callable = variances.fixed_small) -> Sampler:
    """Ancestral sampling between any two levels: the mean of the posterior, plus noise of `variance`.

    A guidance gradient shifts the mean by variance times gradient. The step to the clean image adds no noise. As in
    ADM's code its mean is shifted too, except for `fixed_small`, whose variance is zero there: `fixed_large` uses the
    posterior variance of the step before, and the range of `learned_range` starts at it.

    Args:
      variance: a choice of variance.py.

    Reference: DDPM (Ho et al. 2020), algorithm 2; ADM (Dhariwal & Nichol 2021), algorithm 1.
    """

    def init(x):
        return Noise(*jnp.asarray([0.0, 1.0, 0.0], x.dtype))  # the level before the step; sigma = 0: none yet

    def step(noise, denoiser, carry, x, now, next):
        denoised = denoiser(x, now)
        mean = posterior_mean(denoised.x0, x, now, next)
        if denoised.guidance_gradient is not None:
            before = jax.tree.map(lambda a, b: jnp.where(carry.sigma > 0, a, b), carry, now)
            gradient_factor = _gradient_factor(variance, denoised.variance_interpolation, before, now, next)
            mean = mean + gradient_factor * denoised.guidance_gradient
        small, large = posterior_variance(now, next), transition_variance(now, next)
        std = jnp.sqrt(variance(small, large, denoised.variance_interpolation))
        x = mean + unless_clean(std, next) * noise(now, next)
        return x, jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), now)

    return Sampler(init, step)


def _gradient_factor(variance: Callable, interpolation: Array | None, before: Noise, now: Noise, next: Noise) -> Array:
    """Returns the variance that multiplies a guidance gradient in the shift of the mean, as in ADM's code."""
    small, large = step_variances(before, now, next)
    if interpolation is None:
        last = next.sigma == 0
        small, large = jnp.where(last, 0.0, small), jnp.where(last, small, large)
    return variance(small, large, interpolation)


def ddim(*, eta: Array | float = 0.0, sigma_hat: Array | bool = False, unclipped_eps: Array | bool = False) -> Sampler:
    """DDIM: deterministic at eta = 0, the ancestral sampler at eta = 1.

    Args:
      eta: in [0, 1], standard deviation of the noise over that of the posterior.
      sigma_hat: whether to add noise of DDPM's larger variance to the direction of `eta`; at eta = 1 this is
        `ancestral` with `fixed_large` (sec. 5, last rows of table 1).
      unclipped_eps: whether eps is that of x_0 before clipping, as in diffusers without `use_clipped_model_output`.
        Otherwise eps and the clipped x_0 are of the same x_t.

    Reference: DDIM (Song et al. 2021), eq. 12 and 16.
    """

    def step(noise, denoiser, carry, x, now, next):
        denoised = denoiser(x, now)
        x0 = guided_x0(denoised, now)
        unclipped = x0 if denoised.unclipped is None else guided_x0(denoised._replace(x0=denoised.unclipped), now)
        eps = eps_from_x0(x, jnp.where(jnp.asarray(unclipped_eps, bool), unclipped, x0), now)
        down, std = lowered(now, next, eta)
        large = unless_clean(jnp.sqrt(transition_variance(now, next)), next)
        noise_std = jnp.where(jnp.asarray(sigma_hat, bool), large, std)
        return next.alpha * x0 + down.sigma * eps + noise_std * noise(now, next), carry

    return Sampler(no_history, step)


def euler() -> Sampler:
    """Euler's method on the probability-flow ODE; equals `ddim`.

    In x / alpha and sigma / alpha, and for a rectified flow in x and t: both give the same step.

    Reference: Song et al. 2021b, eq. 13; EDM (Karras et al. 2022), eq. 4.
    """
    return ddim()


def euler_ancestral(*, eta: Array | float = 1.0) -> Sampler:
    """Euler's method to a lower noise level, then noise up to the next level; equals `ddim(eta)`.

    Reference: Crowson's k-diffusion.
    """
    return ddim(eta=eta)


def euler_maruyama(
    *,
    constant: Array | float = 0.0,
    sigma: Array | float = 1.0,
    sbdm: Array | float = 0.0,
    decreasing: Array | float = 0.0,
    increasing_decreasing: Array | float = 0.0,
) -> Sampler:
    """Euler-Maruyama steps of SiT's SDE, whose diffusion coefficient w is a choice: w = 0 is Euler's method.

    In the coordinates of a rectified flow with time u in [0, 1], which is 1 - t in SiT's code, w / 2 = constant +
    sigma u + sbdm u / (1 - u) + decreasing (1 - cos(pi u))^2 / 4 + increasing_decreasing sin^2(pi u). The marginals do
    not depend on w in the limit of many steps. The last step returns x_0.

    Args:
      constant: >= 0, factor of SiT's `constant`.
      sigma: >= 0, factor of SiT's `sigma`, the same as its `linear`.
      sbdm: >= 0, factor of SiT's `SBDM`, the coefficient of the reverse of the forward process.
      decreasing: >= 0, factor of SiT's `decreasing` with norm 1.
      increasing_decreasing: >= 0, factor of SiT's `increasing-decreasing`.

    Reference: SiT (Ma et al. 2024), eq. 4, and its code, where the factors are a `norm`.
    """

    def step(noise, denoiser, carry, x, now, next):
        x0 = estimate_x0(denoiser, x, now)
        time, scale = flow_time(now), next.alpha + next.sigma
        length = time - flow_time(next)
        of_process = jnp.where(has_signal(now), time / (1 - time), 0.0)
        half = constant + sigma * time + sbdm * of_process  # w / 2
        half += decreasing * (1 - jnp.cos(jnp.pi * time)) ** 2 / 4
        half += increasing_decreasing * jnp.sin(jnp.pi * time) ** 2
        half = jnp.where(next.sigma > 0, half, 0.0)
        score = -eps_from_x0(x, x0, now) / time
        change = half * length * score + jnp.sqrt(2 * half * length) * noise(now, next)
        return ddim_step(x, x0, now, next) + scale * change, carry

    return Sampler(no_history, step)
