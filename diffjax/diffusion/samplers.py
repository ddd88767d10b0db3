"""How one level of noise becomes the next. A public function of this file is a sampler a config can name.

A sampler's keyword arguments are its options, and numbers among them may be traced. `variance`, `schedule` and `steps`
are given by the process: its variance, its schedule, the grid's number of steps. Steps work on a batch [B, ...] whose
examples stand at one level, with a key each. Coordinates are x / alpha against sigma / alpha, as in Karras et al. 2022,
written so that alpha may be zero at the first level and sigma is at the last.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array, lax
from jax import numpy as jnp

from diffjax.diffusion import variance as variances
from diffjax.diffusion.denoiser import Denoised, Denoiser
from diffjax.diffusion.levels import Schedule
from diffjax.diffusion.noise import (
    Noise,
    implied_eps,
    log_snr,
    posterior_mean,
    posterior_variance,
    prior_std,
    step_variances,
    transfer,
    transition_variance,
)


class Sampler(NamedTuple):
    """A numerical method. Every grid ends at the clean level, where a step returns x_0 and adds no noise."""

    init: Callable  # (x) -> carry: the history of a multi-step method, or ()
    step: Callable  # (keys [B], denoiser, carry, x [B, ...], now: Noise, next: Noise) -> (x, carry)


def ancestral(*, variance: Callable = variances.fixed_small) -> Sampler:
    """DDPM (Ho et al. 2020), algorithm 2, between any two levels: the posterior's mean, noise of `variance`.

    A gradient that guides shifts the mean by variance times gradient: ADM, algorithm 1. The step to the clean image
    adds no noise. As in ADM's code its mean is shifted too, but for `fixed_small`, whose variance is zero there:
    `fixed_large` takes the posterior variance of the step before, and the range of `learned_range` starts at it.
    """

    def init(x):
        return Noise(*jnp.asarray([0.0, 1.0, 0.0], x.dtype))  # the level before; without noise: there is none

    def step(keys, denoiser, carry, x, now, next):
        denoised = denoiser(x, now)
        mean = posterior_mean(denoised.x0, x, now, next)
        if denoised.gradient is not None:
            before = jax.tree.map(lambda a, b: jnp.where(carry.sigma > 0, a, b), carry, now)
            mean = mean + _shift(variance, denoised.interpolation, before, now, next) * denoised.gradient
        spread = variance(posterior_variance(now, next), transition_variance(now, next), denoised.interpolation)
        x = mean + _unless_clean(jnp.sqrt(spread), next) * _normal_like(keys, x)
        return x, jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), now)

    return Sampler(init, step)


def ddim(*, eta: Array | float = 0.0, sigma_hat: Array | bool = False) -> Sampler:
    """DDIM (Song et al. 2021), eq. 12: deterministic at eta = 0, the ancestral sampler at eta = 1 (eq. 16).

    `sigma_hat` instead adds noise of DDPM's larger variance to the direction of eta (sec. 5); with eta = 1 that is the
    ancestral sampler with `fixed_large`, the last rows of the paper's table 1.
    """

    def step(keys, denoiser, carry, x, now, next):
        x0 = _x0(denoiser(x, now), now)
        std = eta * jnp.sqrt(posterior_variance(now, next))
        # sqrt(sigma_next^2 - std^2) without its cancellation where little signal is left
        kept = now.alpha * next.sigma / (next.alpha * now.sigma)
        direction = next.sigma * jnp.sqrt(jnp.maximum(1.0 - eta**2 + (eta * kept) ** 2, 0.0))
        noise_std = jnp.where(jnp.asarray(sigma_hat, bool), jnp.sqrt(transition_variance(now, next)), std)
        x = next.alpha * x0 + direction * implied_eps(x, x0, now)
        return x + _unless_clean(noise_std, next) * _normal_like(keys, x), carry

    return Sampler(_no_history, step)


def euler() -> Sampler:
    """Euler's method on the probability-flow ODE (Song et al. 2021b, eq. 13; Karras et al. 2022, eq. 4).

    In x / alpha against sigma / alpha, and for a rectified flow in x against t: all the same step, that of `ddim`.
    """
    return ddim()


def euler_ancestral(*, eta: Array | float = 1.0) -> Sampler:
    """Euler's method to less noise than asked, then noise up to it: Crowson's k-diffusion. The same as `ddim(eta)`."""
    return ddim(eta=eta)


def heun() -> Sampler:
    """Heun's second-order method: EDM (Karras et al. 2022), algorithm 1. Two evaluations a step.

    One, Euler's, in the last step and in steps that are too long for the correction: see `_is_short`.
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
    """EDM's stochastic sampler (Karras et al. 2022), algorithm 2: more noise, then Heun's step. `heun` at churn 0.

    `churn`, `noise`, `low` and `high` are S_churn, S_noise, S_tmin and S_tmax, the last two of sigma / alpha. The level
    with more noise is one of the process; at its last level no more can be added, where the paper goes beyond it.
    A step that is too long for the correction is Euler's: see `_is_short`.
    """

    def step(keys, denoiser, carry, x, now, next):
        sigma = now.sigma / now.alpha
        churned = (low <= sigma) & (sigma <= high) & _has_signal(now)
        gamma = jnp.where(churned, jnp.minimum(churn / steps, 2**0.5 - 1), 0.0)
        more = schedule(schedule.time_at(log_snr(now) - 2 * jnp.log1p(gamma)))
        more = jax.tree.map(lambda a, b: jnp.where(gamma > 0, a, b), more, now)
        added = noise * jnp.sqrt(transition_variance(more, now))
        added = jnp.where(gamma > 0, added, 0.0)
        x = jnp.where(gamma > 0, more.alpha / now.alpha, 1.0) * x + added * _normal_like(keys, x)
        return _heun_step(denoiser, x, more, next), carry

    return Sampler(_no_history, step)


def plms() -> Sampler:
    """Linear multi-step method on DDIM's transfer, without Runge-Kutta's start: Liu et al. 2022, eq. 12 and 19.

    As latent diffusion has it: the first step takes the mean of two evaluations, later ones up to four past values.
    Steps that are too long for extrapolation are DDIM's: see `_is_short`.
    """

    def start(denoiser, x, eps, now, next):
        ahead = transfer(x, _x0_of_eps(x, eps, now), now, next)
        return (eps + _eps(denoiser, ahead, next)) / 2

    return _pseudo_multistep(start, starting=1)


def pndm(*, schedule: Schedule) -> Sampler:
    """PNDM, F-PNDM in the paper: three steps of pseudo Runge-Kutta, then `plms`: Liu et al. 2022, algorithm 2.

    The first three steps take four evaluations each, two of them half way in time. Steps that are too long for
    extrapolation are DDIM's: see `_is_short`.
    """

    def start(denoiser, x, e1, now, next):
        middle = schedule((now.t + next.t) / 2)
        move = lambda eps, level: transfer(x, _x0_of_eps(x, eps, now), now, level)  # noqa: E731
        e2 = _eps(denoiser, move(e1, middle), middle)
        e3 = _eps(denoiser, move(e2, middle), middle)
        e4 = _eps(denoiser, move(e3, next), next)
        return (e1 + 2 * e2 + 2 * e3 + e4) / 6

    return _pseudo_multistep(start, starting=3)


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M): Lu et al. 2022b, algorithm 2. One evaluation a step; of first order in the last."""
    return dpmpp_2m_sde(eta=0.0)


def dpmpp_2m_sde(*, eta: Array | float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M): Lu et al. 2022b, app. B, with `eta` of its noise; the solver of the ODE at eta 0."""

    def init(x):
        return jnp.zeros_like(x), jnp.asarray(jnp.inf)  # the last x_0, and how far the last step went

    def step(keys, denoiser, carry, x, now, next):
        last_x0, last_h = carry
        x0, h = _x0(denoiser(x, now), now), _half_log_snr_gain(now, next)
        ahead = _extrapolated(x0, last_x0, h, last_h)
        decay = now.alpha * next.sigma / (now.sigma * next.alpha)  # exp(-h)
        mean = next.sigma / now.sigma * decay**eta * x + next.alpha * (1 - decay ** (1 + eta)) * ahead
        std = next.sigma * jnp.sqrt(1 - decay ** (2 * eta))
        return mean + _unless_clean(std, next) * _normal_like(keys, x), (x0, h)

    return Sampler(init, step)


def unipc() -> Sampler:
    """UniPC-2, predicting data, with B_2(h) = exp(h) - 1: Zhao et al. 2023, algorithms 5 to 8.

    Its predictor is `dpmpp_2m`. The corrector uses the evaluation of the next step, so it costs none.
    """

    class History(NamedTuple):
        x: Array  # where the last step began, as corrected
        level: Noise
        x0: Array  # the estimate there
        before: Array  # and one step earlier
        h: Array  # how far the last step went; infinite if there was none
        last_h: Array  # and the one before

    def init(x):
        nothing, far = jnp.zeros_like(x), jnp.asarray(jnp.inf, x.dtype)
        level = Noise(*jnp.asarray([0.0, 1.0, 1.0], x.dtype))
        return History(x, level, nothing, nothing, far, far)

    def correct(past: History, x, x0, now):
        h = jnp.where(jnp.isfinite(past.h), past.h, 1.0)
        lost = jnp.expm1(-h)
        phi = lost / -h - 1
        b1 = phi / lost
        b2 = (phi / -h - 0.5) * 2 / lost
        r = -past.last_h / h
        older_weight = (b1 - b2) / (1 - r)
        newer_weight = jnp.where(jnp.isfinite(r), b1 - older_weight, 0.5)
        change = older_weight * (past.before - past.x0) / r + newer_weight * (x0 - past.x0)
        corrected = now.sigma / past.level.sigma * past.x - now.alpha * lost * (past.x0 + change)
        return jnp.where(jnp.isfinite(past.h), corrected, x)

    def step(keys, denoiser, past, x, now, next):
        del keys
        x0, h = _x0(denoiser(x, now), now), _half_log_snr_gain(now, next)
        x = correct(past, x, x0, now)
        history = jax.tree.map(lambda leaf: leaf.astype(x.dtype), History(x, now, x0, past.x0, h, past.h))
        return transfer(x, _extrapolated(x0, past.x0, h, past.h), now, next), history

    return Sampler(init, step)


def _x0(denoised: Denoised, noise: Noise) -> Array:
    """x_0 with a gradient that guides let in as a shift of eps by -sigma times gradient: ADM, algorithm 2.

    Not from next to no signal, where the shift of x_0 has no bounds.
    """
    if denoised.gradient is None:
        return denoised.x0
    return denoised.x0 + jnp.where(_has_signal(noise), noise.sigma**2 / noise.alpha, 0.0) * denoised.gradient


def _shift(variance: Callable, interpolation: Array | None, before: Noise, now: Noise, next: Noise) -> Array:
    """Returns the variance that multiplies a gradient in the shift of the mean, in the last step as in ADM's code."""
    small, large = step_variances(before, now, next)
    if interpolation is None:
        last = next.sigma == 0
        small, large = jnp.where(last, 0.0, small), jnp.where(last, small, large)
    return variance(small, large, interpolation)


def _eps(denoiser: Denoiser, x: Array, noise: Noise) -> Array:
    return implied_eps(x, _x0(denoiser(x, noise), noise), noise)


def _x0_of_eps(x: Array, eps: Array, noise: Noise) -> Array:
    return (x - noise.sigma * eps) / noise.alpha


def _heun_step(denoiser: Denoiser, x: Array, now: Noise, next: Noise) -> Array:
    x0 = _x0(denoiser(x, now), now)
    ahead = transfer(x, x0, now, next)

    def correct(ahead):
        change = _eps(denoiser, ahead, next) - implied_eps(x, x0, now)
        return ahead + (next.sigma - next.alpha / now.alpha * now.sigma) / 2 * change

    return lax.cond((next.sigma > 0) & _is_short(now, next), correct, lambda ahead: ahead, ahead)


_ADAMS_BASHFORTH = [  # weights of the newest value first, for orders one to four
    [1, 0, 0, 0],
    [3 / 2, -1 / 2, 0, 0],
    [23 / 12, -16 / 12, 5 / 12, 0],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
]


def _pseudo_multistep(start: Callable, *, starting: int) -> Sampler:
    """Adams-Bashforth on eps, moved by DDIM's transfer. `start` gives the eps of the first `starting` steps."""

    def init(x):
        return jnp.zeros((3, *x.shape)), jnp.zeros((), jnp.int32)  # the last three eps, how many steps were made

    def step(keys, denoiser, carry, x, now, next):
        del keys
        history, made = carry
        x0 = _x0(denoiser(x, now), now)
        eps = implied_eps(x, x0, now)
        recent = jnp.concatenate([eps[None], history])
        weights = jnp.asarray(_ADAMS_BASHFORTH, x.dtype)[jnp.minimum(made, 3)]
        short = _is_short(now, next)
        mixed = lax.cond(
            (made < starting) & (next.sigma > 0) & short,
            lambda: start(denoiser, x, eps, now, next),
            lambda: jnp.tensordot(weights, recent, 1),
        )
        x0 = jnp.where(short, _x0_of_eps(x, mixed, now), x0)
        return transfer(x, x0, now, next), (recent[:3], made + 1)

    return Sampler(init, step)


def _has_signal(noise: Noise) -> Array:
    """Whether sigma / alpha, the coordinate of the methods of higher order, is not next to infinite."""
    return noise.alpha > 1e-3 * noise.sigma


def _is_short(now: Noise, next: Noise) -> Array:
    """Returns whether Heun's method is right to a tenth from `now` to `next`, on data of unit variance.

    There E[eps | x_t] = sigma x_t / (alpha^2 + sigma^2), and x_t keeps the standard deviation of `prior_std`. In longer
    steps, from nearly pure noise to where the image forms, methods that average eps along sigma / alpha overshoot
    without bounds, and DDIM's step does not. Published codes keep such steps out of the grid instead: EDM ends at
    sigma / alpha = 80, DPM-Solver cuts the cosine schedule where it is 164.
    """
    start, end = prior_std(now), prior_std(next)

    def move(eps):
        return transfer(start, _x0_of_eps(start, eps, now), now, next)

    first = now.sigma / start
    second = next.sigma / end**2 * move(first)
    error = move((first + second) / 2) - end
    return _has_signal(now) & (jnp.abs(error) <= 0.1 * end)


def _extrapolated(x0: Array, last_x0: Array, h: Array, last_h: Array) -> Array:
    """x_0 half a step ahead, along the last two estimates; `x0` itself from alpha = 0 and to sigma = 0.

    By no more than it last changed, which limits steps over twice as long in log-SNR as the one before. DPM-Solver's
    code has `lower_order_final` for them, by the number of steps.
    """
    ratio = jnp.where(jnp.isfinite(h), jnp.minimum(h / last_h, 2.0), 0.0)
    return x0 + ratio / 2 * (x0 - last_x0)


def _half_log_snr_gain(now: Noise, next: Noise) -> Array:
    """h = lambda_next - lambda_now of Lu et al. 2022, lambda being half our log-SNR."""
    return (log_snr(next) - log_snr(now)) / 2


def _no_history(x: Array) -> tuple:
    return ()


def _unless_clean(std: Array, next: Noise) -> Array:
    return jnp.where(next.sigma > 0, std, 0.0)


def _normal_like(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
