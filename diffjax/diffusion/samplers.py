"""Samplers: steps from one noise level to the next. A public function of this file is a sampler a config can name.

The keyword arguments of a sampler are its options; numbers among them may be traced. The process passes `variance`,
`schedule`, and `steps`, the number of steps of the grid. A step works on a batch [B, ...] at one noise level, with one
key per example. Coordinates are x / alpha and sigma / alpha, as in EDM (Karras et al. 2022), written so that alpha may
be zero at the first level and sigma is zero at the last.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array, lax
from jax import numpy as jnp

from diffjax.diffusion import variance as variances
from diffjax.diffusion.denoiser import Denoised, Denoiser
from diffjax.diffusion.noise import (
    Noise,
    ddim_step,
    eps_from_x0,
    initial_std,
    log_snr,
    posterior_mean,
    posterior_variance,
    step_variances,
    transition_variance,
)
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.random import normal_each


class Sampler(NamedTuple):
    """A numerical method. Every grid ends at the clean level, where a step returns x_0 and adds no noise.

    Attributes:
      init: maps x to the initial carry: the history of a multi-step method, or ().
      step: maps (keys [B], denoiser, carry, x [B, ...], now: Noise, next: Noise) to (x, carry); consumes the keys.
    """

    init: Callable
    step: Callable


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

    def step(keys, denoiser, carry, x, now, next):
        denoised = denoiser(x, now)
        mean = posterior_mean(denoised.x0, x, now, next)
        if denoised.guidance_gradient is not None:
            before = jax.tree.map(lambda a, b: jnp.where(carry.sigma > 0, a, b), carry, now)
            gradient_factor = _gradient_factor(variance, denoised.variance_interpolation, before, now, next)
            mean = mean + gradient_factor * denoised.guidance_gradient
        small, large = posterior_variance(now, next), transition_variance(now, next)
        std = jnp.sqrt(variance(small, large, denoised.variance_interpolation))
        x = mean + _unless_clean(std, next) * normal_each(keys, x.shape[1:], x.dtype)
        return x, jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), now)

    return Sampler(init, step)


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

    def step(keys, denoiser, carry, x, now, next):
        denoised = denoiser(x, now)
        x0 = _x0(denoised, now)
        unclipped = x0 if denoised.unclipped is None else _x0(denoised._replace(x0=denoised.unclipped), now)
        eps = eps_from_x0(x, jnp.where(jnp.asarray(unclipped_eps, bool), unclipped, x0), now)
        std = eta * jnp.sqrt(posterior_variance(now, next))
        # sqrt(sigma_next^2 - std^2), written without cancellation at low signal
        decay = now.alpha * next.sigma / (next.alpha * now.sigma)
        direction = next.sigma * jnp.sqrt(jnp.maximum(1.0 - eta**2 + (eta * decay) ** 2, 0.0))
        noise_std = jnp.where(jnp.asarray(sigma_hat, bool), jnp.sqrt(transition_variance(now, next)), std)
        x = next.alpha * x0 + direction * eps
        return x + _unless_clean(noise_std, next) * normal_each(keys, x.shape[1:], x.dtype), carry

    return Sampler(_no_history, step)


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


def heun() -> Sampler:
    """Heun's second-order method: two evaluations per step.

    Takes Euler's step, of one evaluation, in the last step and in steps that are too long for the correction: see
    `_is_short`.

    Reference: EDM (Karras et al. 2022), algorithm 1.
    """

    def step(keys, denoiser, carry, x, now, next):
        del keys
        return _heun_step(denoiser, x, now, next), carry

    return Sampler(_no_history, step)


def edm(
    *,
    schedule: Schedule,
    steps: Array | int,
    churn: Array | float = 0.0,
    noise: Array | float = 1.0,
    low: Array | float = 0.0,
    high: Array | float = float("inf"),
) -> Sampler:
    """EDM's stochastic sampler: adds noise, then takes Heun's step. Equals `heun` at churn 0.

    The added noise moves x to a noisier level of the process; at the last level it adds none, where the paper goes
    beyond it. Takes Euler's step if the step is too long for the correction: see `_is_short`.

    Args:
      schedule: noise level at a timestep.
      steps: number of steps of the grid.
      churn: S_churn, >= 0.
      noise: S_noise, about 1.
      low: S_tmin, of sigma / alpha.
      high: S_tmax, of sigma / alpha.

    Reference: EDM (Karras et al. 2022), algorithm 2.
    """

    def step(keys, denoiser, carry, x, now, next):
        sigma = now.sigma / now.alpha
        churned = (low <= sigma) & (sigma <= high) & _has_signal(now)
        gamma = jnp.where(churned, jnp.minimum(churn / steps, 2**0.5 - 1), 0.0)
        more = schedule(schedule.time_at(log_snr(now) - 2 * jnp.log1p(gamma)))
        more = jax.tree.map(lambda a, b: jnp.where(gamma > 0, a, b), more, now)
        added = noise * jnp.sqrt(transition_variance(more, now))
        added = jnp.where(gamma > 0, added, 0.0)
        x = jnp.where(gamma > 0, more.alpha / now.alpha, 1.0) * x + added * normal_each(keys, x.shape[1:], x.dtype)
        return _heun_step(denoiser, x, more, next), carry

    return Sampler(_no_history, step)


def plms() -> Sampler:
    """Linear multi-step method on the DDIM step, without the Runge-Kutta start.

    The first step averages two evaluations, later ones up to four past values, as in latent diffusion's code. Steps
    that are too long for extrapolation are DDIM steps: see `_is_short`.

    Reference: Liu et al. 2022, eq. 12 and 19.
    """

    def start(denoiser, x, eps, now, next):
        ahead = ddim_step(x, _x0_of_eps(x, eps, now), now, next)
        return (eps + _eps(denoiser, ahead, next)) / 2

    return _pseudo_multistep(start, starting=1)


def pndm(*, schedule: Schedule) -> Sampler:
    """PNDM (F-PNDM in the paper): three steps of pseudo Runge-Kutta, then `plms`.

    The first three steps take four evaluations each, two of them half way in time. Steps that are too long for
    extrapolation are DDIM steps: see `_is_short`.

    Args:
      schedule: noise level at a timestep.

    Reference: Liu et al. 2022, algorithm 2.
    """

    def start(denoiser, x, e1, now, next):
        middle = schedule((now.t + next.t) / 2)

        def move(eps, level):
            return ddim_step(x, _x0_of_eps(x, eps, now), now, level)

        e2 = _eps(denoiser, move(e1, middle), middle)
        e3 = _eps(denoiser, move(e2, middle), middle)
        e4 = _eps(denoiser, move(e3, next), next)
        return (e1 + 2 * e2 + 2 * e3 + e4) / 6

    return _pseudo_multistep(start, starting=3)


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M): one evaluation per step; first order in the last step.

    Reference: Lu et al. 2022b, algorithm 2.
    """
    return dpmpp_2m_sde(eta=0.0)


def dpmpp_2m_sde(*, eta: Array | float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M).

    Args:
      eta: factor on the noise; 0: `dpmpp_2m`, the solver of the ODE.

    Reference: Lu et al. 2022b, app. B.
    """

    def init(x):
        return jnp.zeros_like(x), jnp.asarray(jnp.inf)  # x_0 and h of the last step

    def step(keys, denoiser, carry, x, now, next):
        last_x0, last_h = carry
        x0, h = _x0(denoiser(x, now), now), _half_log_snr_gain(now, next)
        ahead = _extrapolated(x0, last_x0, h, last_h)
        decay = now.alpha * next.sigma / (now.sigma * next.alpha)  # exp(-h)
        mean = next.sigma / now.sigma * decay**eta * x + next.alpha * (1 - decay ** (1 + eta)) * ahead
        std = next.sigma * jnp.sqrt(1 - decay ** (2 * eta))
        return mean + _unless_clean(std, next) * normal_each(keys, x.shape[1:], x.dtype), (x0, h)

    return Sampler(init, step)


def unipc() -> Sampler:
    """UniPC-2, predicting data, with B_2(h) = exp(h) - 1.

    The predictor is `dpmpp_2m`. The corrector reuses the evaluation of the next step.

    Reference: Zhao et al. 2023, algorithms 5 to 8.
    """

    class History(NamedTuple):
        x: Array  # start of the last step, corrected
        level: Noise  # of x
        x0: Array  # estimate at x
        before: Array  # estimate one step earlier
        h: Array  # gain in half the log-SNR of the last step; inf: no step yet
        last_h: Array  # the same, one step earlier

    def init(x):
        zero, infinite = jnp.zeros_like(x), jnp.asarray(jnp.inf, x.dtype)
        level = Noise(*jnp.asarray([0.0, 1.0, 1.0], x.dtype))
        return History(x, level, zero, zero, infinite, infinite)

    def correct(history: History, x, x0, now):
        h = jnp.where(jnp.isfinite(history.h), history.h, 1.0)
        decay = jnp.expm1(-h)
        phi = decay / -h - 1
        b1 = phi / decay
        b2 = (phi / -h - 0.5) * 2 / decay
        r = -history.last_h / h
        older_weight = (b1 - b2) / (1 - r)
        newer_weight = jnp.where(jnp.isfinite(r), b1 - older_weight, 0.5)
        change = older_weight * (history.before - history.x0) / r + newer_weight * (x0 - history.x0)
        corrected = now.sigma / history.level.sigma * history.x - now.alpha * decay * (history.x0 + change)
        return jnp.where(jnp.isfinite(history.h), corrected, x)

    def step(keys, denoiser, history, x, now, next):
        del keys
        x0, h = _x0(denoiser(x, now), now), _half_log_snr_gain(now, next)
        x = correct(history, x, x0, now)
        new_history = jax.tree.map(lambda leaf: leaf.astype(x.dtype), History(x, now, x0, history.x0, h, history.h))
        return ddim_step(x, _extrapolated(x0, history.x0, h, history.h), now, next), new_history

    return Sampler(init, step)


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

    def step(keys, denoiser, carry, x, now, next):
        x0 = _x0(denoiser(x, now, schedule(0.0)), now)
        std = jnp.sqrt(transition_variance(next, schedule(schedule.first)))
        return next.alpha * x0 + _unless_clean(std, next) * normal_each(keys, x.shape[1:], x.dtype), carry

    return Sampler(_no_history, step)


def lcm() -> Sampler:
    """Equals `consistency`, for models of images without the noise of a first level.

    Reference: Luo et al. 2023, "Latent consistency models", algorithm 2.
    """

    def step(keys, denoiser, carry, x, now, next):
        x0 = _x0(denoiser(x, now), now)
        return next.alpha * x0 + _unless_clean(next.sigma, next) * normal_each(keys, x.shape[1:], x.dtype), carry

    return Sampler(_no_history, step)


def tcd(*, schedule: Schedule, gamma: Array | float = 0.3) -> Sampler:
    """Moves to the level (1 - gamma) t of the next timestep t by a DDIM step, and noises it to the next level.

    Args:
      schedule: noise level at a timestep.
      gamma: in [0, 1]; 0: `ddim`; 1: `lcm`, but for the noise of the first level of a discrete schedule.

    Reference: Zheng et al. 2024, "Trajectory consistency distillation", algorithm 4.
    """

    def step(keys, denoiser, carry, x, now, next):
        x0 = _x0(denoiser(x, now), now)
        t = (1.0 - gamma) * next.t if schedule.continuous else jnp.floor((1.0 - gamma) * (next.t - 1.0)) + 1.0
        level = schedule(jnp.where(next.t > 0, t, 0.0))
        x = next.alpha / level.alpha * ddim_step(x, x0, now, level)
        std = jnp.sqrt(transition_variance(next, level))
        return x + _unless_clean(std, next) * normal_each(keys, x.shape[1:], x.dtype), carry

    return Sampler(_no_history, step)


def flow_map() -> Sampler:
    """Steps of a flow map, whose denoiser is given the next level: exact in any number of steps if the map is.

    With the denoiser of another model it equals `ddim`.

    Reference: shortcut models (Frans et al. 2024), algorithm 2; MeanFlow (Geng et al. 2025), eq. 12.
    """

    def step(keys, denoiser, carry, x, now, next):
        del keys
        return ddim_step(x, _x0(denoiser(x, now, next), now), now, next), carry

    return Sampler(_no_history, step)


def _x0(denoised: Denoised, noise: Noise) -> Array:
    """Returns x_0, shifted by the guidance gradient: eps shifts by -sigma times gradient.

    No shift at nearly no signal, where the shift of x_0 has no bounds.

    Reference: ADM (Dhariwal & Nichol 2021), algorithm 2.
    """
    if denoised.guidance_gradient is None:
        return denoised.x0
    return denoised.x0 + jnp.where(_has_signal(noise), noise.sigma**2 / noise.alpha, 0.0) * denoised.guidance_gradient


def _gradient_factor(variance: Callable, interpolation: Array | None, before: Noise, now: Noise, next: Noise) -> Array:
    """Returns the variance that multiplies a guidance gradient in the shift of the mean, as in ADM's code."""
    small, large = step_variances(before, now, next)
    if interpolation is None:
        last = next.sigma == 0
        small, large = jnp.where(last, 0.0, small), jnp.where(last, small, large)
    return variance(small, large, interpolation)


def _eps(denoiser: Denoiser, x: Array, noise: Noise) -> Array:
    return eps_from_x0(x, _x0(denoiser(x, noise), noise), noise)


def _x0_of_eps(x: Array, eps: Array, noise: Noise) -> Array:
    return (x - noise.sigma * eps) / noise.alpha


def _heun_step(denoiser: Denoiser, x: Array, now: Noise, next: Noise) -> Array:
    x0 = _x0(denoiser(x, now), now)
    ahead = ddim_step(x, x0, now, next)

    def correct(ahead):
        change = _eps(denoiser, ahead, next) - eps_from_x0(x, x0, now)
        return ahead + (next.sigma - next.alpha / now.alpha * now.sigma) / 2 * change

    return lax.cond((next.sigma > 0) & _is_short(now, next), correct, lambda ahead: ahead, ahead)


_ADAMS_BASHFORTH = [  # weights of the newest value first, for orders one to four
    [1, 0, 0, 0],
    [3 / 2, -1 / 2, 0, 0],
    [23 / 12, -16 / 12, 5 / 12, 0],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
]


def _pseudo_multistep(start: Callable, *, starting: int) -> Sampler:
    """Adams-Bashforth on eps, with DDIM steps. `start` returns the eps of the first `starting` steps."""

    def init(x):
        return jnp.zeros((3, *x.shape)), jnp.zeros((), jnp.int32)  # last three eps, number of steps taken

    def step(keys, denoiser, carry, x, now, next):
        del keys
        history, taken = carry
        x0 = _x0(denoiser(x, now), now)
        eps = eps_from_x0(x, x0, now)
        recent = jnp.concatenate([eps[None], history])
        weights = jnp.asarray(_ADAMS_BASHFORTH, x.dtype)[jnp.minimum(taken, 3)]
        short = _is_short(now, next)
        mixed = lax.cond(
            (taken < starting) & (next.sigma > 0) & short,
            lambda: start(denoiser, x, eps, now, next),
            lambda: jnp.tensordot(weights, recent, 1),
        )
        x0 = jnp.where(short, _x0_of_eps(x, mixed, now), x0)
        return ddim_step(x, x0, now, next), (recent[:3], taken + 1)

    return Sampler(init, step)


def _has_signal(noise: Noise) -> Array:
    """Returns whether sigma / alpha, the coordinate of the higher-order methods, is not nearly infinite."""
    return noise.alpha > 1e-3 * noise.sigma


def _is_short(now: Noise, next: Noise) -> Array:
    """Returns whether Heun's method is right to 10 % from `now` to `next`, on Gaussian data of unit variance.

    There E[eps | x_t] = sigma x_t / (alpha^2 + sigma^2), and x_t has standard deviation `initial_std`. In longer steps,
    from nearly pure noise to the first structure, methods that average eps along sigma / alpha overshoot without
    bounds, and DDIM's step does not. Published codes exclude such steps from the grid instead: EDM ends at sigma /
    alpha = 80, DPM-Solver cuts the cosine schedule at 164.
    """
    start, end = initial_std(now), initial_std(next)

    def move(eps):
        return ddim_step(start, _x0_of_eps(start, eps, now), now, next)

    first = now.sigma / start
    second = next.sigma / end**2 * move(first)
    error = move((first + second) / 2) - end
    return _has_signal(now) & (jnp.abs(error) <= 0.1 * end)


def _extrapolated(x0: Array, last_x0: Array, h: Array, last_h: Array) -> Array:
    """Extrapolates x_0 by half a step from the last two estimates; returns `x0` from alpha = 0 and to sigma = 0.

    Limits the change to the last change of x_0: this affects steps more than twice as long in log-SNR as the step
    before. DPM-Solver's code has `lower_order_final` instead, by the number of steps.
    """
    ratio = jnp.where(jnp.isfinite(h), jnp.minimum(h / last_h, 2.0), 0.0)
    return x0 + ratio / 2 * (x0 - last_x0)


def _half_log_snr_gain(now: Noise, next: Noise) -> Array:
    """Returns h = lambda_next - lambda_now of Lu et al. 2022, where lambda is half the log-SNR."""
    return (log_snr(next) - log_snr(now)) / 2


def _no_history(x: Array) -> tuple:
    return ()


def _unless_clean(std: Array, next: Noise) -> Array:
    return jnp.where(next.sigma > 0, std, 0.0)
