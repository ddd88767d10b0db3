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
# Bounds of the factors of the last changes of x_0 in an extrapolation. Even short steps have 1/2, 1/2 and 7/6.
_MAX_MIDDLE, _MAX_MEAN, _MAX_THIRD = 1.0, 0.7, 1.6


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
    bh1 = jnp.asarray(bh1, bool)

    class History(NamedTuple):
        x: Array  # start of the last step, corrected
        level: Noise  # of x
        estimates: Array  # [3, ...] of x_0: at x, and one and two steps earlier
        gains: Array  # [3] in half the log-SNR: of the last step and of the two before it; inf: no step yet

    def init(x):
        level = Noise(*jnp.asarray([0.0, 1.0, 1.0], x.dtype))
        return History(x, level, jnp.zeros((3, *x.shape), x.dtype), jnp.full(3, jnp.inf, x.dtype))

    def correct(history: History, x, x0, now):
        h, *last = history.gains
        h = jnp.where(jnp.isfinite(h), h, 1.0)
        start, *earlier = history.estimates
        # places of the earlier estimates and of the new one, where the last step goes from 0 to 1
        places = [-last[0] / h, -(last[0] + last[1]) / h, jnp.ones_like(h)]
        slopes = [(earlier[0] - start) / places[0], (earlier[1] - start) / places[1], x0 - start]
        moments = _moments(h)
        change = 0.5 * jnp.where(bh1, h / -jnp.expm1(-h), 1.0) * slopes[2]
        for number, chosen in ((2, [0, 2]), (3, [0, 1, 2])):
            weights = _moment_weights([places[i] for i in chosen], moments)
            better = sum(weight * slopes[i] for weight, i in zip(weights, chosen, strict=True))
            change = jnp.where((order >= number) & jnp.isfinite(places[chosen[-2]]), better, change)
        corrected = ddim_step(history.x, start + change, history.level, now)
        return jnp.where(jnp.isfinite(history.gains[0]), corrected, x)

    def predict(values, gains, h):
        ratio = jnp.where(jnp.isfinite(h), h / gains[0], 0.0)
        factor = jnp.minimum(ratio / 2, _MAX_MIDDLE) * jnp.where(bh1 & jnp.isfinite(h), h / -jnp.expm1(-h), 1.0)
        second = values[0] + jnp.where(order >= 2, factor, 0.0) * (values[0] - values[1])
        both = gains[0] + gains[1]
        weights = _moment_weights([-gains[0] / h, -both / h], _moments(h))
        older = h / both * weights[1]
        third = _third_order(values, [ratio * weights[0] + older, older], second, h)
        return jnp.where((order >= 3) & jnp.isfinite(both), third, second)

    def step(noise, denoiser, history, x, now, next):
        del noise
        x0, h = estimate_x0(denoiser, x, now), half_log_snr_gain(now, next)
        x = correct(history, x, x0, now)
        estimates = jnp.concatenate([x0[None], history.estimates[:2]])
        new_history = History(x, now, estimates, jnp.concatenate([h[None], history.gains[:2]]))
        new_history = jax.tree.map(lambda leaf: leaf.astype(x.dtype), new_history)
        return ddim_step(x, predict(estimates, history.gains, h), now, next), new_history

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


def _moments(h: Array) -> list[Array]:
    """Returns the first three moments of a position in [0, 1] with density proportional to exp(h position)."""
    first = exponential_mean(h)
    norm = -1 / jnp.expm1(-h)
    second = norm - 2 * first / h
    return [first, second, norm - 3 * second / h]


def _moment_weights(places: list[Array], moments: list[Array]) -> list[Array]:
    """Returns the weights of slopes at `places` in the mean of x_0 over a step, less x_0 at its start.

    x_0 is the polynomial whose mean slopes from 0 to each place are given; `moments` are those of the position.
    """
    weights = []
    for i, place in enumerate(places):
        others = places[:i] + places[i + 1 :]
        total = moments[len(others)]
        if len(others) == 1:
            total = total - others[0] * moments[0]
        elif len(others) == 2:
            total = total - (others[0] + others[1]) * moments[1] + others[0] * others[1] * moments[0]
        gap = 1.0
        for other in others:
            gap = gap * (place - other)
        weights.append(total / gap)
    return weights
