"""Training losses of denoising. A public function of this file is a loss a config can name, as of flow_map_losses.py.

A loss maps a noised batch and the network's prediction to a value per example [B]. The process passes `schedule`,
`weighting` and `variance`.
"""

import math
from collections.abc import Callable

import chex
import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.denoiser import Denoised, Prediction
from diffjax.diffusion.likelihood import decoder_term, prior_term, step_term
from diffjax.diffusion.noise import perturb
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.noised_batch import NoisedBatch


def mse(batch: NoisedBatch, prediction: Prediction, *, weighting: Callable) -> Float[Array, " B"]:
    """Computes weighting * mean |x0_hat - x_0|^2, for any parameterization.

    Args:
      batch: noised examples.
      prediction: the network's prediction.
      weighting: a choice of loss_weighting.py.

    Returns:
      The loss [B], mean over the values of an example.

    Reference: DDPM (Ho et al. 2020), algorithm 1.
    """
    chex.assert_equal_shape((batch.x0, batch.x, prediction.output))

    def one(x0, x, c, output):
        target = (x0 - c.skip * x) / c.out
        return jnp.mean((output - target) ** 2)

    error = jax.vmap(one)(batch.x0, batch.x, prediction.coefficients, prediction.output)
    return weighting(batch.noise, prediction.coefficients) * prediction.coefficients.out**2 * error


def vlb(batch: NoisedBatch, prediction: Prediction, *, schedule: Schedule, variance: Callable) -> Float[Array, " B"]:
    """Estimates the variational bound, bits/dim, by one term at the sampled timestep; includes the prior term.

    On a discrete schedule: T times one term of DDPM's eq. 5. On a continuous schedule: its limit, with the decoder term
    at the first level. Unbiased for timesteps sampled uniformly, or by importance with the loss factor.

    Args:
      batch: noised examples.
      prediction: the network's prediction.
      schedule: noise level at a timestep.
      variance: a choice of variance.py; has no effect on a continuous schedule.

    Returns:
      The estimate [B].

    Reference: Improved DDPM (Nichol & Dhariwal 2021), sec. 2; VDM (Kingma et al. 2021), eq. 11 and 16.
    """
    chex.assert_equal_shape((batch.x0, batch.x, prediction.output))
    prior = jax.vmap(prior_term, (0, None))(batch.x0, schedule(float(schedule.timesteps)))
    return prior + (_continuous_terms if schedule.continuous else _discrete_terms)(
        batch, prediction, schedule, variance
    )


def hybrid(
    batch: NoisedBatch,
    prediction: Prediction,
    *,
    schedule: Schedule,
    weighting: Callable,
    variance: Callable,
    vlb_weight: float = 0.001,
) -> Float[Array, " B"]:
    """Computes mse + vlb_weight * vlb, where the gradient of the bound reaches the variance only.

    Reference: Improved DDPM (Nichol & Dhariwal 2021), eq. 16 and sec. 3.1.
    """
    fixed_mean = prediction._replace(output=lax.stop_gradient(prediction.output))
    bound = vlb(batch, fixed_mean, schedule=schedule, variance=variance)
    return mse(batch, prediction, weighting=weighting) + vlb_weight * bound


def _discrete_terms(
    batch: NoisedBatch, prediction: Prediction, schedule: Schedule, variance: Callable
) -> Float[Array, " B"]:
    t = batch.noise.t
    next, before = schedule(t - 1), schedule(jnp.minimum(t + 1, schedule.timesteps))

    def one(x0, x, now, next, before, prediction):
        c = prediction.coefficients
        denoised = Denoised(c.skip * x + c.out * prediction.output, prediction.variance_interpolation)
        return step_term(denoised, x0, x, now, next, before=before, variance=variance)

    return schedule.timesteps * jax.vmap(one)(batch.x0, batch.x, batch.noise, next, before, prediction)


def _continuous_terms(
    batch: NoisedBatch, prediction: Prediction, schedule: Schedule, variance: Callable
) -> Float[Array, " B"]:
    del variance  # in the limit, all variances give the same bound
    first = schedule(schedule.first)

    def decoder(x0, eps):
        return decoder_term(x0, perturb(x0, eps, first) / first.alpha, first.sigma / first.alpha)

    def snr(t):
        noise = schedule(t)
        return (noise.alpha / noise.sigma) ** 2

    weight = -jax.vmap(jax.grad(snr))(batch.noise.t) * (schedule.timesteps - schedule.first)
    error = mse(batch, prediction, weighting=lambda noise, coefficients: weight)
    return error / (2 * math.log(2.0)) + jax.vmap(decoder)(batch.x0, batch.eps)
