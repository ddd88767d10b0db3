"""Guidance of whole steps of a sampler, for what a denoiser cannot do: carry a state, and move x.

Both use the first evaluation of each step, which every sampler makes unconditionally.
"""

from jax import numpy as jnp

from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.samplers import Sampler


def with_memory(sampler: Sampler) -> Sampler:
    """Returns a sampler that carries the running average of guidance from step to step: momentum.

    In the place of a denoiser its steps take a function from the running average to the denoiser, whose
    `Denoised.guidance_average` is the next one.
    """

    def init(x):
        return sampler.init(x), jnp.zeros_like(x)

    def step(noise, denoiser_with, carry, x, now, next):
        inner, average = carry
        guided, averages = denoiser_with(average), []

        def denoise(*arguments) -> Denoised:
            denoised = guided(*arguments)
            averages.append(denoised.guidance_average)
            return denoised._replace(guidance_average=None)

        x, inner = sampler.step(noise, denoise, inner, x, now, next)
        return x, (inner, averages[0])

    evaluations = sampler.evaluations
    return Sampler(init, step, evaluations and (lambda carry: evaluations(carry[0])))


def with_displacement(sampler: Sampler) -> Sampler:
    """Returns a sampler that adds the denoiser's `Denoised.displacement`, if there is one, to x after each step."""

    def step(noise, denoiser, carry, x, now, next):
        displacements = []

        def denoise(*arguments) -> Denoised:
            denoised = denoiser(*arguments)
            displacements.append(denoised.displacement)
            return denoised._replace(displacement=None)

        x, carry = sampler.step(noise, denoise, carry, x, now, next)
        return x if displacements[0] is None else x + displacements[0], carry

    return sampler._replace(step=step)
