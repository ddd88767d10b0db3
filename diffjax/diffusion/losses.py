"""What training minimises. A public function of this file is a loss a config can name.

A loss maps a batch of noised examples and what the network made of them to [B]. `schedule`, `weighting` and `variance`
are given by the process.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.levels import Schedule
from diffjax.diffusion.likelihood import decoder_term, prior_term, step_term
from diffjax.diffusion.noise import Noise, perturb
from diffjax.diffusion.parameterizations import Coefficients


class Trial(NamedTuple):
    """Examples noised, each at a level of its own, and the network's output there."""

    x0: Float[Array, "B ..."]
    eps: Float[Array, "B ..."]
    x: Float[Array, "B ..."]
    noise: Noise  # leaves [B]
    coefficients: Coefficients  # leaves [B]
    output: Float[Array, "B ..."]  # F
    interpolation: Float[Array, "B ..."] | None  # of the variance, if it is learned


def mse(trial: Trial, *, weighting: Callable) -> Float[Array, "B"]:
    """weighting * mean |x0_hat - x_0|^2: DDPM (Ho et al. 2020), algorithm 1, for any parameterization."""

    def one(x0, x, c, output):
        target = (x0 - c.skip * x) / c.out
        return jnp.mean((output - target) ** 2)

    error = jax.vmap(one)(trial.x0, trial.x, trial.coefficients, trial.output)
    return weighting(trial.noise, trial.coefficients) * trial.coefficients.out**2 * error


def vlb(trial: Trial, *, schedule: Schedule, variance: Callable) -> Float[Array, "B"]:
    """The variational bound, bits/dim: one term, at the time drawn, stands for all; the prior's is added.

    On a discrete schedule T times a term of DDPM's eq. 5, L_vlb of Improved DDPM (Nichol & Dhariwal 2021, sec. 2); on a
    continuous one its limit (VDM, Kingma et al. 2021, eq. 11 and 16), with the decoder at the first level.
    An estimate of the bound where times are drawn uniformly, or by importance.
    """
    prior = jax.vmap(prior_term, (0, None))(trial.x0, schedule(float(schedule.timesteps)))
    return prior + (_continuous_terms if schedule.continuous else _discrete_terms)(trial, schedule, variance)


def hybrid(
    trial: Trial, *, schedule: Schedule, weighting: Callable, variance: Callable, vlb_weight: float = 0.001
) -> Float[Array, "B"]:
    """mse + vlb_weight * vlb, where the bound trains the variance alone: Improved DDPM, eq. 16 and sec. 3.1."""
    fixed_mean = trial._replace(output=lax.stop_gradient(trial.output))
    bound = vlb(fixed_mean, schedule=schedule, variance=variance)
    return mse(trial, weighting=weighting) + vlb_weight * bound


def _discrete_terms(trial: Trial, schedule: Schedule, variance: Callable) -> Float[Array, "B"]:
    t = trial.noise.t
    next, before = schedule(t - 1), schedule(jnp.minimum(t + 1, schedule.timesteps))

    def one(x0, x, now, next, before, c, output, interpolation):
        denoised = Denoised(c.skip * x + c.out * output, interpolation)
        return step_term(denoised, x0, x, now, next, before=before, variance=variance)

    terms = jax.vmap(one)(
        trial.x0, trial.x, trial.noise, next, before, trial.coefficients, trial.output, trial.interpolation
    )
    return schedule.timesteps * terms


def _continuous_terms(trial: Trial, schedule: Schedule, variance: Callable) -> Float[Array, "B"]:
    del variance  # all agree in the limit
    first = schedule(schedule.first)

    def decoder(x0, eps):
        return decoder_term(x0, perturb(x0, eps, first) / first.alpha, first.sigma / first.alpha)

    def snr(t):
        noise = schedule(t)
        return (noise.alpha / noise.sigma) ** 2

    weight = -jax.vmap(jax.grad(snr))(trial.noise.t) * (schedule.timesteps - schedule.first)
    error = mse(trial, weighting=lambda noise, coefficients: weight)
    return error / (2 * math.log(2.0)) + jax.vmap(decoder)(trial.x0, trial.eps)
