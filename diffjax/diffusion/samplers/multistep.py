"""Multi-step samplers: one evaluation per step, which earlier estimates extend to a higher order."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import DTypeLike

from diffjax.diffusion.noise import Noise, ddim_step, eps_from_x0, log_snr
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.samplers.base import (
    Sampler,
    check_order,
    estimate_eps,
    estimate_x0,
    exponential_mean,
    half_log_snr_gain,
    is_short,
    unless_clean,
    x0_from_eps,
)

_ADAMS_BASHFORTH = [  # weights of the newest value first, for orders one to four
    [1, 0, 0, 0],
    [3 / 2, -1 / 2, 0, 0],
    [23 / 12, -16 / 12, 5 / 12, 0],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
]
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(8)  # on [-1, 1]
# Bounds of the factors of the last changes of x_0 in an extrapolation. Even short steps have 1/2, 1/2, 7/6 and 17/6.
_MAX_MIDDLE, _MAX_MEAN, _MAX_THIRD, _MAX_FOURTH = 1.0, 0.7, 1.6, 3.6
_MAX_POSITION = 0.85  # in a step, of the mean of two estimates by B(h) = h; longer steps have 1/2


# Methods on eps.


def plms() -> Sampler:
    """Linear multi-step method on the DDIM step, without the Runge-Kutta start.

    The first step averages two evaluations, later ones up to four past values, as in latent diffusion's code. Steps
    that are too long for extrapolation are DDIM steps: see `base.is_short`.

    Reference: Liu et al. 2022, eq. 12 and 19.
    """

    def start(denoiser, x, eps, now, next):
        ahead = ddim_step(x, x0_from_eps(x, eps, now), now, next)
        return (eps + estimate_eps(denoiser, ahead, next)) / 2

    return _on_eps(_adams_bashforth, start, starting=1)


def pndm(*, schedule: Schedule) -> Sampler:
    """PNDM (F-PNDM in the paper): three steps of pseudo Runge-Kutta, then `plms`.

    The first three steps take four evaluations each, two of them half way in time. Steps that are too long for
    extrapolation are DDIM steps: see `base.is_short`.

    Args:
      schedule: noise level at a timestep.

    Reference: Liu et al. 2022, algorithm 2.
    """

    def start(denoiser, x, e1, now, next):
        middle = schedule((now.t + next.t) / 2)

        def move(eps, level):
            return ddim_step(x, x0_from_eps(x, eps, now), now, level)

        e2 = estimate_eps(denoiser, move(e1, middle), middle)
        e3 = estimate_eps(denoiser, move(e2, middle), middle)
        e4 = estimate_eps(denoiser, move(e3, next), next)
        return (e1 + 2 * e2 + 2 * e3 + e4) / 6

    return _on_eps(_adams_bashforth, start, starting=3)


def ipndm() -> Sampler:
    """`plms` whose first steps are of lower order: one evaluation in every step.

    Reference: iPNDM of Zhang & Chen 2023, "Fast sampling of diffusion models with exponential integrator".
    """
    return _on_eps(_adams_bashforth)


def lms(*, order: Array | int = 4) -> Sampler:
    """Linear multi-step method: integrates a polynomial in sigma / alpha through the last values of eps.

    Equals DEIS with rho as its variable. Steps that are too long for extrapolation are DDIM steps: see `base.is_short`.

    Args:
      order: 1 to 4, number of values.

    Reference: Crowson's k-diffusion; Zhang & Chen 2023, eq. 15.
    """

    check_order(order, 4)

    def weights(levels, next, available):
        ratio, end = levels.sigma / levels.alpha, next.sigma / next.alpha
        used = (jnp.arange(4) < jnp.minimum(order, available)) & jnp.isfinite(ratio)
        nodes, node_weights = _quadrature(ratio.dtype)
        return _polynomial_weights(ratio, used, ratio[0] + (end - ratio[0]) * nodes, node_weights)

    return _on_eps(weights)


def deis(*, schedule: Schedule, order: Array | int = 3, log_rho: Array | bool = False) -> Sampler:
    """DEIS: integrates a polynomial in the timestep (tAB) through the last values of eps.

    The last step is of first order. Steps that are too long for extrapolation are DDIM steps: see `base.is_short`.

    Args:
      schedule: noise level at a timestep.
      order: 1 to 4, number of values; tAB1 of the paper has two.
      log_rho: whether the polynomial is in log(sigma / alpha), as in diffusers.

    Reference: Zhang & Chen 2023, eq. 15.
    """

    check_order(order, 4)

    def weights(levels, next, available):
        half_log_snr = log_snr(levels) / 2
        gain = log_snr(next) / 2 - half_log_snr[0]
        shares, node_weights = _quadrature(half_log_snr.dtype)
        nodes = half_log_snr[0] + gain * shares
        in_log_rho = jnp.asarray(log_rho, bool)
        places = jnp.where(in_log_rho, half_log_snr, levels.t)
        nodes = jnp.where(in_log_rho, nodes, schedule.time_at(2 * nodes))
        used = (jnp.arange(4) < jnp.minimum(order, available)) & jnp.isfinite(half_log_snr)
        weights = _polynomial_weights(places, used, nodes, jnp.exp(-gain * shares) * node_weights)
        return jnp.where(jnp.isfinite(gain), weights, jnp.eye(4)[0])

    return _on_eps(weights)


def dpm_solver_multistep(*, order: Array | int = 2, heun: Array | bool = False) -> Sampler:
    """Multi-step DPM-Solver of second or third order; of first order in the last step.

    Steps that are too long for extrapolation are DDIM steps: see `base.is_short`.

    Args:
      order: 1 to 3.
      heun: see `dpmpp_2m_sde`; the third order is always so.

    Reference: code of DPM-Solver (Lu et al. 2022).
    """

    check_order(order, 3)

    def weights(levels, next, available):
        half_log_snr = log_snr(levels) / 2
        gain = log_snr(next) / 2 - half_log_snr[0]
        gains = half_log_snr[:-1] - half_log_snr[1:]
        gains = jnp.where(jnp.arange(3) < jnp.minimum(order, available) - 1, gains, jnp.inf)
        return _extrapolated(jnp.eye(4)[:3], gain, gains[:2], -gain, heun)

    return _on_eps(weights)


# Methods on x_0.


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M): one evaluation per step; first order in the last step.

    Reference: Lu et al. 2022b, algorithm 2.
    """
    return dpmpp_2m_sde(eta=0.0)


def dpmpp_2m_sde(*, eta: Array | float = 1.0, heun: Array | bool = False) -> Sampler:
    """SDE-DPM-Solver++(2M).

    Args:
      eta: factor on the noise; 0: `dpmpp_2m`, the solver of the ODE.
      heun: whether to integrate the slope of x_0 exactly, k-diffusion's `solver_type="heun"`, instead of extrapolating
        x_0 to the middle of the step.

    Reference: Lu et al. 2022b, app. B.
    """
    return _on_x0(2, eta, heun)


def dpmpp_3m_sde(*, eta: Array | float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(3M): the last three estimates; first order in the last step.

    Args:
      eta: factor on the noise; 0: DPM-Solver++(3M), the solver of the ODE.

    Reference: Crowson's k-diffusion; Lu et al. 2022b, app. B.
    """
    return _on_x0(3, eta, True)


def unipc(*, order: Array | int = 2, bh1: Array | bool = False) -> Sampler:
    """UniPC, predicting data: the corrector reuses the evaluation of the next step.

    The predictor of second order is `dpmpp_2m`. The corrector adds one to the order.

    Args:
      order: 1 to 3.
      bh1: whether B(h) = h instead of B(h) = exp(h) - 1. It matters where fewer than two differences are known.

    Reference: Zhao et al. 2023, algorithms 5 to 8.
    """

    check_order(order, 3)
    return _predictor_corrector(order, order + 1, bh1)


def sa_solver(
    *,
    predictor_order: Array | int = 2,
    corrector_order: Array | int = 2,
    tau: Array | float = 1.0,
    low: Array | float = 0.57,
    high: Array | float = 5.2,
) -> Sampler:
    """SA-Solver, predicting data: stochastic Adams methods, whose corrector reuses the evaluation of the next step.

    At tau = 0 it is the solver of the ODE, and `unipc(order=p, bh1=True)` with the orders p and p + 1. Its order of
    convergence is the lower one of `corrector_order` and `predictor_order` + 1.

    Args:
      predictor_order: 1 to 4, number of estimates of x_0.
      corrector_order: 1 to 4, number of estimates with that of the next step; 0: no corrector.
      tau: noise of steps that start in the interval from `low` to `high`: 0 for the ODE, 1 for the reverse of the
        forward process, or more. Other steps add none.
      low: of sigma / alpha. The default is that of diffusers, timesteps 200 to 800, for Stable Diffusion's schedule.
      high: of sigma / alpha.

    Reference: Xue et al. 2023, "SA-Solver", algorithm 1; for second order with the weights of its code.
    """

    check_order(predictor_order, 4, "predictor_order")
    check_order(corrector_order, 4, "corrector_order", lowest=0)

    def eta_at(now):
        inside = (low * now.alpha <= now.sigma) & (now.sigma <= high * now.alpha)
        return jnp.where(inside, jnp.square(tau), 0.0)

    return _predictor_corrector(predictor_order, corrector_order, True, eta_at)


def _predictor_corrector(
    predictor_order: Array | int,
    corrector_order: Array | int,
    bh1: Array | bool,
    eta_at: Callable[[Noise], Array] | None = None,
) -> Sampler:
    """Returns the exponential integrator in the log-SNR whose steps are corrected by the estimate at their end.

    Args:
      predictor_order: 1 to 4, number of estimates.
      corrector_order: 0 to 4, number of estimates with that at the end of the step.
      bh1: see `_interpolated`.
      eta_at: factor on the noise of the step from a level, as in `dpmpp_2m_sde`; None: no noise.
    """

    class Last(NamedTuple):  # the last step
        rest: Array  # its end, less the part of the estimates
        factor: Array  # of the estimates
        rate: Array  # of the weights exp(rate half_log_snr) over the step

    def init(x):
        scalar = jnp.ones((), x.dtype)
        return Last(x, scalar, scalar), jnp.zeros((3, *x.shape), x.dtype), jnp.full(3, -jnp.inf, x.dtype)

    def step(noise, denoiser, carry, x, now, next):
        last, history, places = carry
        values = jnp.concatenate([estimate_x0(denoiser, x, now)[None], history])
        places = jnp.append((log_snr(now) / 2).astype(x.dtype), places)  # of the estimates, in half the log-SNR
        end = log_snr(next) / 2

        corrected = _interpolated(values, places, places[1], places[0], last.rate, corrector_order, bh1)
        has_corrector = jnp.isfinite(places[1]) & (jnp.asarray(corrector_order) > 0)
        x = jnp.where(has_corrector, last.rest + last.factor * corrected, x)

        decay = now.alpha * next.sigma / (now.sigma * next.alpha)  # e^-h
        eta = 0.0 if eta_at is None else eta_at(now)
        rest = next.sigma / now.sigma * decay**eta * x
        if eta_at is not None:
            std = next.sigma * jnp.sqrt(1 - decay ** (2 * eta))
            rest = rest + unless_clean(std, next) * noise(now, next)
        last = Last(rest, next.alpha * (1 - decay ** (1 + eta)), jnp.asarray(1 + eta))
        x = rest + last.factor * _interpolated(values, places, places[0], end, last.rate, predictor_order, bh1)
        return x, (jax.tree.map(lambda leaf: leaf.astype(x.dtype), last), values[:3], places[:3])

    return Sampler(init, step)


def _on_eps(weights: Callable, start: Callable | None = None, *, starting: int = 0) -> Sampler:
    """Returns the sampler that takes DDIM steps with a mean of the last four values of eps.

    Args:
      weights: (levels of the values, leaves [4], newest first; next; number of values) -> weights [4], of sum 1.
      start: returns the eps of the first `starting` steps.
      starting: number of steps that `start` replaces.
    """

    def init(x):
        levels = Noise(*(jnp.full(3, value, x.dtype) for value in (0.0, 1.0, 1.0)))
        return jnp.zeros((3, *x.shape), x.dtype), levels, jnp.zeros((), jnp.int32)  # last three, number of steps taken

    def step(noise, denoiser, carry, x, now, next):
        del noise
        history, levels, taken = carry
        x0 = estimate_x0(denoiser, x, now)
        eps = eps_from_x0(x, x0, now)
        recent = jnp.concatenate([eps[None], history])
        levels = jax.tree.map(lambda new, old: jnp.append(jnp.asarray(new, x.dtype), old), now, levels)
        short = is_short(now, next)

        def mix():
            return jnp.tensordot(weights(levels, next, jnp.minimum(taken + 1, 4)).astype(x.dtype), recent, 1)

        if start is None:
            mixed = mix()
        else:
            starts = (taken < starting) & (next.sigma > 0) & short
            mixed = lax.cond(starts, functools.partial(start, denoiser, x, eps, now, next), mix)
        x0 = jnp.where(short, x0_from_eps(x, mixed, now), x0)
        return ddim_step(x, x0, now, next), (recent[:3], jax.tree.map(lambda leaf: leaf[:3], levels), taken + 1)

    return Sampler(init, step)


def _adams_bashforth(levels: Noise, next: Noise, available: Array) -> Array:
    return jnp.asarray(_ADAMS_BASHFORTH, levels.alpha.dtype)[available - 1]


def _quadrature(dtype: DTypeLike) -> tuple[Array, Array]:
    """Returns the nodes of Gauss and Legendre in [0, 1] and their weights, [8] each."""
    return jnp.asarray((_NODES + 1) / 2, dtype), jnp.asarray(_NODE_WEIGHTS / 2, dtype)


def _polynomial_weights(places: Array, used: Array, nodes: Array, node_weights: Array) -> Array:
    """Returns the weights [4] of values at `places` in the mean of the polynomial through the `used` ones.

    The mean is that of the values of the polynomial at `nodes` [M] with `node_weights` [M].
    """
    places = jnp.where(used, places, 0.0)
    is_other = used[None] & ~jnp.eye(len(places), dtype=bool)
    gaps = jnp.where(is_other, places[:, None] - places[None], 1.0)
    factors = jnp.where(is_other[..., None], (nodes[None, None] - places[None, :, None]) / gaps[..., None], 1.0)
    basis = jnp.where(used[:, None], jnp.prod(factors, axis=1), 0.0)
    return basis @ node_weights / jnp.sum(node_weights)


def _on_x0(count: int, eta: Array | float, heun: Array | bool) -> Sampler:
    """Returns the exponential integrator in the log-SNR, with noise, from the last `count` estimates of x_0."""

    def init(x):
        return jnp.zeros((count - 1, *x.shape), x.dtype), jnp.full(count - 1, jnp.inf, x.dtype)  # of the steps before

    def step(noise, denoiser, carry, x, now, next):
        history, gains = carry
        x0, h = estimate_x0(denoiser, x, now), half_log_snr_gain(now, next)
        recent, decay = jnp.concatenate([x0[None], history]), now.alpha * next.sigma / (now.sigma * next.alpha)  # e^-h
        ahead = _extrapolated(recent, h, gains, (1 + eta) * h, heun)
        mean = next.sigma / now.sigma * decay**eta * x + next.alpha * (1 - decay ** (1 + eta)) * ahead
        std = next.sigma * jnp.sqrt(1 - decay ** (2 * eta))
        carry = recent[:-1], jnp.append(h.astype(x.dtype), gains[:-1])
        return mean + unless_clean(std, next) * noise(now, next), carry

    return Sampler(init, step)


def _extrapolated(values: Array, h: Array, gains: Array, exponent: Array, heun: Array | bool) -> Array:
    """Returns the estimate that an exponential integrator uses for the whole step, from the last two or three.

    Returns the newest from alpha = 0 and to sigma = 0. Bounds the factors of the last changes, which affects steps that
    are much longer in log-SNR than the steps before. DPM-Solver's code has `lower_order_final` instead, by the number
    of steps.

    Args:
      values: estimates [2, ...] or [3, ...], newest first.
      h: gain in half the log-SNR of the step.
      gains: of the steps before, [1] or [2], newest first; inf: no step.
      exponent: of the weights exp(exponent position) over the step.
      heun: whether to use the mean position under these weights, instead of the middle of the step.
    """
    mean = exponential_mean(exponent)
    ratio = jnp.where(jnp.isfinite(h), h / gains[0], 0.0)
    factor = jnp.minimum(ratio / 2, _MAX_MIDDLE)
    factor = jnp.where(jnp.asarray(heun, bool), jnp.minimum(mean * ratio, _MAX_MEAN), factor)
    second = values[0] + factor * (values[0] - values[1])
    if len(values) == 2:
        return second
    # slope and half of the second derivative of x_0, in units of the step
    both = gains[0] + gains[1]
    slope, curvature = mean + gains[0] / both * mean, -0.5 / jnp.expm1(-exponent) - mean / exponent
    factors = [ratio * (slope + h / both * curvature), h / gains[1] * (mean - slope - h / both * curvature)]
    return jnp.where(jnp.isfinite(both), _third_order(values, factors, second, h), second)


def _third_order(values: Array, factors: list[Array], second: Array, h: Array) -> Array:
    """Returns values[0] plus its last two changes times `factors`; `second` where the factors are unknown or large."""
    third = values[0] + factors[0] * (values[0] - values[1]) + factors[1] * (values[1] - values[2])
    size = jnp.abs(factors[0]) + jnp.abs(factors[1])
    return jnp.where(jnp.isfinite(h) & (size <= _MAX_THIRD), third, second)


def _interpolated(
    values: Array, places: Array, start: Array, end: Array, rate: Array, order: Array | int, bh1: Array | bool
) -> Array:
    """Returns the mean over a step of the polynomial through the newest estimates of x_0.

    Bounds the factors of the last changes, as `_extrapolated` does, and takes fewer estimates instead of large ones.

    Args:
      values: estimates [4, ...], newest first.
      places: half the log-SNR of the estimates [4]; not finite: no estimate.
      start: half the log-SNR at the start of the step, where the weights of the mean are exp(-rate h).
      end: half the log-SNR at its end, where they are 1.
      rate: of the weights.
      order: number of estimates; 1 for steps from alpha = 0 and to sigma = 0.
      bh1: whether B(h) of UniPC is h, but in long steps; it matters for two estimates.
    """
    exponent = rate * (end - start)
    places = (places - start) / (end - start)
    known = jnp.isfinite(places) & jnp.isfinite(exponent)
    shares, node_weights = _quadrature(places.dtype)
    node_weights = jnp.exp(exponent * (shares - 1)) * node_weights

    gap = places[0] - places[1]
    of_bh1 = 0.5 * exponent / -jnp.expm1(-exponent)
    position = jnp.where(jnp.asarray(bh1, bool) & (of_bh1 <= _MAX_POSITION), of_bh1, 0.5)
    factor = (jnp.minimum(position, gap * _MAX_MIDDLE) - places[0]) / gap
    weights = jnp.where(known[1] & (order >= 2), jnp.stack([1 + factor, -factor, 0.0, 0.0]), jnp.eye(4)[0])
    for number, limit in ((3, _MAX_THIRD), (4, _MAX_FOURTH)):
        more = _polynomial_weights(places, known & (jnp.arange(4) < number), shares, node_weights)
        size = jnp.sum(jnp.abs(jnp.cumsum(more) - 1)[:3])  # of the factors of the last changes
        weights = jnp.where(known[number - 1] & (order >= number) & (size <= limit), more, weights)
    return jnp.tensordot(weights.astype(values.dtype), values, 1)
