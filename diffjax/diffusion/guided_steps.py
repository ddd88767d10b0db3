"""Guidance of whole steps of a sampler, as a denoiser has no state."""

from collections.abc import Callable

from jax import Array
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.denoiser import Denoised, Denoiser
from diffjax.diffusion.samplers import Sampler


def with_memory(sampler: Sampler, denoiser_with: Callable[[Float[Array, "B ..."]], Denoiser]) -> Sampler:
    """Returns a sampler that carries the running average of guidance from step to step: momentum.

    The first evaluation of each step, which every sampler makes unconditionally, returns the next average. The
    denoiser that the loop passes to the step is not used.

    Args:
      sampler: a choice of samplers.py.
      denoiser_with: maps the running average to the denoiser, whose `Denoised.guidance_average` is the next one.
    """

    def init(x):
        return sampler.init(x), jnp.zeros_like(x)

    def step(keys, denoiser, carry, x, now, next):
        del denoiser
        inner, average = carry
        guided, averages = denoiser_with(average), []

        def denoise(*arguments) -> Denoised:
            denoised = guided(*arguments)
            averages.append(denoised.guidance_average)
            return denoised._replace(guidance_average=None)

        x, inner = sampler.step(keys, denoise, inner, x, now, next)
        return x, (inner, averages[0])

    return Sampler(init, step)
