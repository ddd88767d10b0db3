"""Parameterizations: meanings of the network's output F. A public function of this file is a choice a config can name.

x0_hat = skip * x_t + out * F(input * x_t, time), as in EDM (Karras et al. 2022, eq. 7). The regression target of F is
then (x_0 - skip * x_t) / out for every parameterization. All are defined for any alpha and sigma, also where
alpha^2 + sigma^2 is not 1.
"""

from typing import NamedTuple

from jax import Array
from jax import numpy as jnp

from diffjax.diffusion.noise import Noise, log_snr, posterior_weights
from diffjax.diffusion.noise_schedules import FIRST, Schedule


class Coefficients(NamedTuple):
    """Coefficients of x0_hat at a noise level, and the network's time input.

    Attributes:
      skip: factor of x_t.
      out: factor of F.
      input: factor of x_t in the network's input.
      time: time input: t - 1, as published models count from zero, or a multiple of it for flow; for edm and
        consistency a multiple of log(sigma / alpha), for trig_flow an angle.
    """

    skip: Array
    out: Array
    input: Array
    time: Array


def eps(noise: Noise) -> Coefficients:
    """The network predicts the noise; undefined at alpha = 0.

    Reference: DDPM (Ho et al. 2020), eq. 11.
    """
    return _plain(1.0 / noise.alpha, -noise.sigma / noise.alpha, noise)


def x0(noise: Noise) -> Coefficients:
    """The network predicts the clean image."""
    return _plain(jnp.zeros_like(noise.alpha), jnp.ones_like(noise.alpha), noise)


def v(noise: Noise) -> Coefficients:
    """The network predicts v = alpha eps - sigma x_0.

    Reference: Salimans & Ho 2022, app. D.
    """
    power = noise.alpha**2 + noise.sigma**2
    return _plain(noise.alpha / power, -noise.sigma / power, noise)


def flow(noise: Noise, *, time_scale: float = 1.0) -> Coefficients:
    """The network predicts the velocity eps - x_0 of a rectified flow.

    Args:
      noise: noise level.
      time_scale: factor of the time input. Losses that differentiate the network by time need a small one, such as 1 /
        T: sinusoidal embeddings of large numbers change fast.

    Reference: Liu et al. 2022, eq. 1; Esser et al. 2024.
    """
    total = noise.alpha + noise.sigma
    c = _plain(1.0 / total, -noise.sigma / total, noise)
    return c._replace(time=time_scale * c.time)


def edm(
    noise: Noise, *, sigma_data: float = 0.5, time_scale: float = 1.0, schedule: Schedule | None = None
) -> Coefficients:
    """EDM's preconditioning: input and target of F have unit variance at every noise level.

    At alpha = 1 the coefficients are the paper's; elsewhere they are those of x_t / alpha at sigma / alpha.

    Args:
      noise: noise level.
      sigma_data: standard deviation of the data.
      time_scale: the time input is time_scale log(sigma / alpha) / 4; 1000 for the networks of OpenAI's code of
        consistency models.
      schedule: bounds the time input where no signal is left, if it is continuous.

    Reference: EDM (Karras et al. 2022), table 1.
    """
    scale = jnp.sqrt(noise.sigma**2 + (noise.alpha * sigma_data) ** 2)
    return Coefficients(
        noise.alpha * sigma_data**2 / scale**2,
        noise.sigma * sigma_data / scale,
        1.0 / scale,
        time_scale * _quarter_log_sigma(noise, schedule),
    )


def consistency(
    noise: Noise,
    *,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    time_scale: float = 1.0,
    schedule: Schedule | None = None,
) -> Coefficients:
    """Preconditioning of a consistency model: EDM's, with x0_hat = x_t / alpha at `sigma_min` whatever the network.

    Cleaner levels have the coefficients of `sigma_min`, up to alpha.

    Args:
      noise: noise level.
      sigma_data: standard deviation of the data.
      sigma_min: sigma / alpha of the boundary condition.
      time_scale, schedule: see `edm`.

    Reference: Song et al. 2023, "Consistency models", app. C.
    """
    scale = jnp.sqrt(noise.sigma**2 + (noise.alpha * sigma_data) ** 2)
    # Nearly zero instead of zero at the boundary, so that the target of F is finite.
    above = jnp.maximum(noise.sigma - noise.alpha * sigma_min, 1e-6 * noise.sigma)
    return Coefficients(
        noise.alpha * sigma_data**2 / (above**2 + (noise.alpha * sigma_data) ** 2),
        above * sigma_data / scale,
        1.0 / scale,
        time_scale * _quarter_log_sigma(noise, schedule),
    )


def trig_flow(noise: Noise, *, sigma_data: float = 0.5) -> Coefficients:
    """EDM's preconditioning with the angle of the noise level as the time input, and F of the opposite sign.

    On the schedule `trig_flow` x_0 is cos(theta) x - sin(theta) sigma_data F(x / sigma_data, theta); elsewhere the
    coefficients are those of x_t scaled to that process.

    Args:
      noise: noise level.
      sigma_data: standard deviation of the data.

    Reference: Lu & Song 2025 (sCM), sec. 3.
    """
    c = edm(noise, sigma_data=sigma_data)
    return c._replace(out=-c.out, time=jnp.arctan2(noise.sigma, sigma_data * noise.alpha))


def mu(noise: Noise, *, schedule: Schedule) -> Coefficients:
    """The network predicts the mean of q(x_t-1 | x_t, x_0). Requires a discrete schedule.

    Args:
      noise: noise level.
      schedule: gives the level of the previous step.

    Reference: DDPM, table 2 (mu).
    """
    x_weight, x0_weight = posterior_weights(noise, schedule(jnp.maximum(noise.t - 1, 0)))
    return _plain(-x_weight / x0_weight, 1.0 / x0_weight, noise)


def _quarter_log_sigma(noise: Noise, schedule: Schedule | None) -> Array:
    """Returns log(sigma / alpha) / 4, the time input of EDM's networks, within [-10, 10] where alpha or sigma is 0.

    On a continuous schedule without signal at T, where sampling starts, it is constant from (1 - FIRST) T on: larger
    values are hardly trained.
    """
    if schedule is not None and schedule.continuous:
        last, end = (schedule(fraction * schedule.timesteps) for fraction in (1.0 - FIRST, 1.0))
        is_later = (end.alpha == 0) & (noise.alpha * last.sigma < last.alpha * noise.sigma)
        noise = Noise(noise.t, *(jnp.where(is_later, *levels) for levels in zip(last[1:], noise[1:], strict=True)))
    return jnp.clip(-log_snr(noise) / 8.0, -10.0, 10.0)


def _plain(skip: Array, out: Array, noise: Noise) -> Coefficients:
    return Coefficients(skip, out, jnp.ones_like(noise.alpha), noise.t - 1.0)
