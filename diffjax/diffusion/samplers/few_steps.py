"""Samplers of models that are trained for few steps: consistency models and flow maps."""

from jax import Array
from jax import numpy as jnp

from diffjax.diffusion.noise import ddim_step, transition_variance
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.samplers.base import Sampler, estimate_x0, guided_x0, no_history, unless_clean


def consistency(*, schedule: Schedule) -> Sampler:
    """Multistep sampling of a consistency model: each step estimates x_0, and noises it to the next level.

    One step is one evaluation, for flow maps that of a step to the clean image. The estimate is an image at the first
    level of the schedule, sigma_min, so the noise has the variance between the two levels. The denoiser of another
    model returns the mean of images instead of an image: its samples lack detail.

    Args:
      schedule: noise level at a timestep.

    Reference: Song et al. 2023, "Consistency models", algorithm 1; for flow maps IMM's restart sampling (Zhou et al.
    2025).
    """

    def step(noise, denoiser, carry, x, now, next):
        x0 = guided_x0(denoiser(x, now, schedule(0.0)), now)
        std = jnp.sqrt(transition_variance(next, schedule(schedule.first)))
        return next.alpha * x0 + unless_clean(std, next) * noise(now, next), carry

    return Sampler(no_history, step)


def lcm() -> Sampler:
    """Equals `consistency`, for models of images without the noise of a first level.

    Reference: Luo et al. 2023, "Latent consistency models", algorithm 2.
    """

    def step(noise, denoiser, carry, x, now, next):
        x0 = estimate_x0(denoiser, x, now)
        return next.alpha * x0 + unless_clean(next.sigma, next) * noise(now, next), carry

    return Sampler(no_history, step)


def tcd(*, schedule: Schedule, gamma: Array | float = 0.3) -> Sampler:
    """Moves to the level (1 - gamma) t of the next timestep t by a DDIM step, and noises it to the next level.

    Args:
      schedule: noise level at a timestep.
      gamma: in [0, 1]; 0: `ddim`; 1: `lcm`, but for the noise of the first level of a discrete schedule.

    Reference: Zheng et al. 2024, "Trajectory consistency distillation", algorithm 4.
    """

    def step(noise, denoiser, carry, x, now, next):
        x0 = estimate_x0(denoiser, x, now)
        t = (1.0 - gamma) * next.t if schedule.continuous else jnp.floor((1.0 - gamma) * (next.t - 1.0)) + 1.0
        level = schedule(jnp.where(next.t > 0, t, 0.0))
        x = next.alpha / level.alpha * ddim_step(x, x0, now, level)
        std = jnp.sqrt(transition_variance(next, level))
        return x + unless_clean(std, next) * noise(now, next), carry

    return Sampler(no_history, step)


def flow_map() -> Sampler:
    """Steps of a flow map, whose denoiser is given the next level: exact in any number of steps if the map is.

    With the denoiser of another model it equals `ddim`.

    Reference: shortcut models (Frans et al. 2024), algorithm 2; MeanFlow (Geng et al. 2025), eq. 12.
    """

    def step(noise, denoiser, carry, x, now, next):
        del noise
        return ddim_step(x, guided_x0(denoiser(x, now, next), now), now, next), carry

    return Sampler(no_history, step)
