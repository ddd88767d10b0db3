"""Samplers with adaptive step sizes: a step of the grid is divided, so that an estimate of its error is in a tolerance.

The estimate is the difference of two solutions, of neighbouring orders, from the same evaluations. Each example has
step sizes of its own, so a sample does not depend on its batch. The denoiser is evaluated on the whole batch, at a
noise level per example, until the last example has arrived.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array, lax
from jax import numpy as jnp

from diffjax.diffusion.noise import Noise, ddim_step, eps_from_x0, flow_time, log_snr
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.samplers.base import (
    Evaluations,
    Sampler,
    check_order,
    choose_level,
    estimate_x0,
    exponential_mean,
    has_signal,
    level_at_ratio,
    lowered,
    x0_from_eps,
)

_FIRST_SIZE = 0.05  # in the variable of integration: half the log-SNR, or the time of a rectified flow
_SAFETY, _MIN_FACTOR, _MAX_FACTOR = 0.9, 0.2, 2.0  # of the next step size
_MIN_ERROR = 1e-8  # `eps` of k-diffusion's controller
_MAX_RATIO = 1000.0  # sigma / alpha; steps from noisier levels to this one are of first order
_STAGES = np.array(  # of Dormand & Prince; the last row is the solution of fifth order
    [
        [0, 0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    ]
)
_FOURTH_ORDER = np.array([5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40])


def rk45(
    *,
    schedule: Schedule,
    rtol: Array | float = 1e-4,
    atol: Array | float = 1e-4,
    max_evaluations: Array | int = 1000,
) -> Sampler:
    """Runge-Kutta method of fifth order by Dormand & Prince, with adaptive step sizes: six evaluations per step.

    Integrates the velocity eps - x_0 over the time of the rectified flow, as `heun(velocity=True)` does. A step of the
    grid is divided into steps whose estimated error in x is at most max(atol, rtol |x|), as a root mean square over
    the example. One step of the grid, --steps=1, is enough. The step to the clean image ends with the estimate of x_0
    at the first level of the schedule.

    Args:
      schedule: noise level at a timestep.
      rtol: tolerance relative to |x|. It has to be above the rounding errors of the network, in bfloat16 for instance.
      atol: tolerance of small values of x.
      max_evaluations: per sample. A sample that reaches it goes to the end of each step by a DDIM step.

    Raises:
      ValueError: both tolerances are 0; traced ones are not checked.

    Reference: Dormand & Prince 1980; Song et al. 2021b, sec. 4.3.
    """
    nodes = _STAGES.sum(1)
    means = _STAGES / np.maximum(nodes, 1e-9)[:, None]

    def value(x, x0, level):
        return eps_from_x0(x, x0, level) - x0

    def move(x, velocity, now, next):
        y = x / (now.alpha + now.sigma) + (flow_time(next) - flow_time(now)) * velocity
        return (next.alpha + next.sigma) * y

    def level(place):
        return schedule(schedule.time_at(2 * (jnp.log1p(place) - jnp.log(-place))))

    method = _Method(
        place=lambda level: -flow_time(level),
        level=level,
        value=value,
        move=move,
        nodes=nodes,
        weights=lambda stage, size: jnp.asarray(means, size.dtype)[stage],
        lower_weights=lambda size: jnp.asarray(_FOURTH_ORDER, size.dtype),
        stages=6,
    )
    return _adaptive(method, _Controller((1 / 5, 0.0, 0.0)), schedule, rtol, atol, max_evaluations)


def dpm_adaptive(
    *,
    schedule: Schedule,
    order: Array | int = 3,
    rtol: Array | float = 0.05,
    atol: Array | float = 0.0078,
    max_evaluations: Array | int = 1000,
    h_init: Array | float = _FIRST_SIZE,
    pcoeff: Array | float = 0.0,
    icoeff: Array | float = 1.0,
    dcoeff: Array | float = 0.0,
    accept_safety: Array | float = 0.81,
    eta: Array | float = 0.0,
    k_diffusion: Array | bool = False,
) -> Sampler:
    """DPM-Solver with adaptive step sizes: DPM-Solver-23, or -12, of `order` evaluations per step.

    Step sizes are those of the log-SNR. For the tolerances, the limit and the end see `rk45`.

    A PID controller multiplies the step size by E_0^-b_0 E_1^-b_1 E_2^-b_2, with the error E_0 of this attempt and
    those of the last two accepted steps. b_0 = (pcoeff + icoeff + dcoeff) / order, b_1 = -(pcoeff + 2 dcoeff) / order
    and b_2 = dcoeff / order. By default only b_0 is not 0, which is an integral controller. Its factor is 0.9 times
    this product, from 0.2 to 2, and errors up to the tolerance are accepted.

    Args:
      schedule: noise level at a timestep.
      order: 2 or 3, the higher of the two orders.
      rtol: tolerance relative to |x|.
      atol: tolerance of small values of x; by default one of 256 grey levels.
      max_evaluations: per sample.
      h_init: first step size, above 0, in half the log-SNR.
      pcoeff: coefficient of the proportional term.
      icoeff: coefficient of the integral term.
      dcoeff: coefficient of the derivative term.
      accept_safety: with `k_diffusion`, the least factor of the step size with which a step is accepted.
      eta: in [0, 1], noise as in `ddim`, added after each accepted step; the order of the controller is then 1.5. The
        step goes to a lower level, but not below the first of the schedule, so that little noise is added at the end.
      k_diffusion: whether steps are accepted and sized as in k-diffusion's `sample_dpm_adaptive`. |x| is then the
        larger one of the solution of lower order and that of the step before, as in the paper, and the factor of the
        step size is 1 + arctan(product - 1). By default errors up to 1.5 times the tolerance are accepted at order 2,
        up to 1.9 times at order 3.

    Raises:
      ValueError: an option is out of its range; traced ones are not checked.

    Reference: DPM-Solver (Lu et al. 2022), its adaptive step size; Crowson's k-diffusion. By default |x| is the smaller
    one of both solutions, and a step is at most twice as long as the one before, so that steps that overshoot are not
    accepted.
    """
    check_order(order, 3, lowest=2)
    if isinstance(h_init, int | float) and not h_init > 0:
        raise ValueError(f"h_init={h_init:g}: must be above 0")

    def value(x, x0, level):
        return eps_from_x0(x, x0, level)

    def move(x, eps, now, next):
        return ddim_step(x, x0_from_eps(x, eps, now), now, next)

    def weights(stage, size):
        mean = exponential_mean(-stage / order * size) * stage / jnp.maximum(stage - 1, 1)
        slope = jnp.where(stage == 1, 0.0, jnp.where(order == 2, 1.0, mean))
        index = jnp.arange(4).reshape(4, *[1] * size.ndim)
        return jnp.where(index == 0, 1 - slope, 0.0) + jnp.where((index == stage - 1) & (stage > 1), slope, 0.0)

    method = _Method(
        place=lambda level: log_snr(level) / 2,
        level=lambda place: schedule(schedule.time_at(2 * place)),
        value=value,
        move=move,
        nodes=jnp.arange(4) / order,
        weights=weights,
        lower_weights=lambda size: jnp.where(jnp.asarray(order) == 2, jnp.eye(4)[0], jnp.array([-0.5, 1.5, 0.0, 0.0])),
        stages=jnp.asarray(order, jnp.int32),
    )
    error_order = jnp.where(eta > 0, 1.5, order)
    exponents = ((pcoeff + icoeff + dcoeff) / error_order, -(pcoeff + 2 * dcoeff) / error_order, dcoeff / error_order)
    controller = _Controller(exponents, h_init, accept_safety, k_diffusion)
    return _adaptive(method, controller, schedule, rtol, atol, max_evaluations, eta)


class _Method(NamedTuple):
    """A Runge-Kutta method with a second solution, of lower order.

    A stage moves x by a mean of the values of the stages before. The last stage is the end of the step, so that its
    evaluation is the first of the next step.

    Attributes:
      place: maps a level to the variable of integration, which rises.
      level: maps the variable to the level.
      value: maps (x, x_0, level) to the value that is averaged.
      move: maps (x, mean value, level, next level) to x at the next level.
      nodes: place of each stage in the step [N], from 0 to 1.
      weights: maps (stage, step size [B, 1, ...]) to the weights of the mean, [N] or [N, B, 1, ...].
      lower_weights: maps the step size to those of the solution of lower order.
      stages: number of stages after the first, of one evaluation each; at most N - 1.
    """

    place: Callable
    level: Callable
    value: Callable
    move: Callable
    nodes: Array | np.ndarray
    weights: Callable
    lower_weights: Callable
    stages: Array | int


class _Controller(NamedTuple):
    """A PID controller of step sizes.

    Attributes:
      exponents: of 1 / the errors of this attempt, of the last accepted step and of the one before it.
      first_size: of the first step.
      accept_safety: see `dpm_adaptive`.
      k_diffusion: see `dpm_adaptive`.
    """

    exponents: tuple[Array | float, Array | float, Array | float]
    first_size: Array | float = _FIRST_SIZE
    accept_safety: Array | float = 0.0
    k_diffusion: Array | bool = False

    def propose(self, error: Array, previous: Array) -> tuple[Array, Array]:
        """Returns the factor of the step size and whether the step is accepted, [B, 1, ...] each.

        Args:
          error: of this attempt over the tolerance [B, 1, ...].
          previous: 1 / the errors of the last two accepted steps [2, B, 1, ...].
        """
        k_diffusion = jnp.asarray(self.k_diffusion, bool)
        b0, b1, b2 = self.exponents
        product = jnp.where(k_diffusion, error + _MIN_ERROR, error) ** -b0 * previous[0] ** b1 * previous[1] ** b2
        clipped = jnp.clip(_SAFETY * product, _MIN_FACTOR, _MAX_FACTOR)
        factor = jnp.where(k_diffusion, 1 + jnp.arctan(product - 1), clipped)
        factor = jnp.where(jnp.isnan(factor), _MIN_FACTOR, factor)  # of an error that is not finite
        return factor, jnp.where(k_diffusion, factor >= self.accept_safety, error <= 1)


class _Carry(NamedTuple):
    evaluations: Evaluations
    size: Array  # next step size [B]
    inverse_errors: Array  # of `_State` [2, B]


class _State(NamedTuple):
    """State of the examples within a step of the grid.

    Attributes:
      x: [B, ...].
      x0: estimate at `x`.
      lower: solution of lower order of the step before; at first `x`.
      place: variable of integration [B, 1, ...].
      size: next step size [B, 1, ...].
      inverse_errors: 1 / the errors of the last two accepted steps [2, B, 1, ...]; at first those of the first attempt,
        and 0 before it.
      count: number of evaluations [B, 1, ...].
    """

    x: Array
    x0: Array
    lower: Array
    place: Array
    size: Array
    inverse_errors: Array
    count: Array


def _adaptive(
    method: _Method,
    controller: _Controller,
    schedule: Schedule,
    rtol: Array | float,
    atol: Array | float,
    max_evaluations: Array | int,
    eta: Array | float = 0.0,
) -> Sampler:
    """Returns the sampler of a method; for `eta` see `dpm_adaptive`."""
    if isinstance(rtol, int | float) and isinstance(atol, int | float) and rtol == atol == 0:
        raise ValueError("rtol=0, atol=0: one of them must be above 0")
    is_noisy = jnp.asarray(eta > 0)
    lowest = schedule(schedule.first)

    def init(x):
        evaluations = Evaluations(jnp.zeros(len(x), jnp.int32), jnp.zeros(len(x), bool))
        size = jnp.broadcast_to(jnp.asarray(controller.first_size, x.dtype), len(x))
        return _Carry(evaluations, size, jnp.zeros((2, len(x)), x.dtype))

    def step(noise, denoiser, carry, x, now, next):
        def attempt(state):
            size = jnp.minimum(state.size, end - state.place)
            reached = jnp.where(size < end - state.place, state.place + size, end)
            start, arrived = method.level(state.place), method.level(reached)
            # the solutions go to `down`, at the distance `length`, and noise leads from there to `arrived`
            down, std = _lowered(start, arrived, lowest, eta)
            down = choose_level(is_noisy, down, arrived)
            length = jnp.where(is_noisy, method.place(down) - state.place, size)

            def added_noise():
                return (std * noise(start, arrived, part=state.count.reshape(-1))).astype(x.dtype)

            added = lax.cond(is_noisy, added_noise, lambda: jnp.zeros_like(x))

            def stage(i, results):
                values, *_ = results
                there = method.level(state.place + jnp.asarray(method.nodes, size.dtype)[i] * length)
                is_end = is_noisy & (i == method.stages)
                point = method.move(
                    state.x, _mean(method.weights(i, length), values), start, choose_level(is_end, down, there)
                )
                there, noised = choose_level(is_end, arrived, there), point + jnp.where(is_end, added, 0.0)
                x0 = estimate_x0(denoiser, noised, there)
                return values.at[i].set(method.value(noised, x0, there)), point, noised, x0

            values = jnp.zeros((len(method.nodes), *x.shape), x.dtype)
            values = values.at[0].set(method.value(state.x, state.x0, start))
            values, higher, noised, x0 = lax.fori_loop(
                1, method.stages + 1, stage, (values, state.x, state.x, state.x0)
            )
            lower = method.move(state.x, _mean(method.lower_weights(length), values), start, down)

            smaller = jnp.minimum(jnp.abs(lower), jnp.abs(higher))
            larger = jnp.maximum(jnp.abs(lower), jnp.abs(state.lower))
            allowed = jnp.maximum(atol, rtol * jnp.where(k_diffusion, larger, smaller))
            squares = jnp.square((higher - lower) / allowed)
            error = jnp.sqrt(jnp.mean(squares, axis=tuple(range(1, x.ndim)), keepdims=True))
            inverse = 1 / (error + _MIN_ERROR)
            previous = jnp.where(state.inverse_errors > 0, state.inverse_errors, inverse)
            factor, is_accepted = controller.propose(error, previous)

            runs = is_running(state)
            is_accepted &= runs
            # a step that was cut short by the end of the grid's does not shorten the next one
            next_size = jnp.where(
                is_accepted & (size < state.size), jnp.maximum(state.size, factor * size), factor * size
            )
            next_size = jnp.where(k_diffusion, factor * state.size, next_size)
            next_errors = jnp.where(is_accepted, jnp.stack([inverse, previous[0]]), previous)
            return _State(
                jnp.where(is_accepted, noised, state.x),
                jnp.where(is_accepted, x0, state.x0),
                jnp.where(is_accepted, lower, state.lower),
                jnp.where(is_accepted, reached, state.place),
                jnp.where(runs, next_size, state.size),
                jnp.where(runs, next_errors, state.inverse_errors),
                state.count + jnp.where(runs, method.stages, 0),
            )

        def is_running(state):
            return (state.place < end) & (state.count + method.stages <= max_evaluations)

        k_diffusion = jnp.asarray(controller.k_diffusion, bool)
        column = (len(x), *[1] * (x.ndim - 1))
        end = method.place(choose_level(next.sigma > 0, next, lowest)).astype(x.dtype)
        x, x0, first, count = _first_estimate(denoiser, x, now, next, schedule)
        state = _State(
            x,
            x0,
            x,
            jnp.full(column, method.place(first), x.dtype),
            carry.size.reshape(column),
            carry.inverse_errors.reshape(2, *column),
            carry.evaluations.count.reshape(column) + count,
        )
        state = lax.while_loop(lambda state: jnp.any(is_running(state)), attempt, state)
        # to the clean image with the estimate at the end; for the whole rest if the limit is reached
        x = ddim_step(state.x, state.x0, method.level(state.place), next)
        is_limited = carry.evaluations.is_limited | (state.place < end).reshape(-1)
        evaluations = Evaluations(state.count.reshape(-1), is_limited)
        return x.astype(state.x.dtype), _Carry(evaluations, state.size.reshape(-1), state.inverse_errors.reshape(2, -1))

    return Sampler(init, step, lambda carry: carry.evaluations)


def _lowered(now: Noise, next: Noise, lowest: Noise, eta: Array | float) -> tuple[Noise, Array]:
    """Returns `base.lowered`, with a level that is not below the `lowest`."""
    down, std = lowered(now, next, eta)
    floor = next.alpha * lowest.sigma / lowest.alpha
    limit = jnp.sqrt(jnp.maximum(next.sigma**2 - floor**2, 0.0))
    return down._replace(sigma=jnp.maximum(down.sigma, floor)), jnp.minimum(std, limit)


def _first_estimate(
    denoiser: Callable, x: Array, now: Noise, next: Noise, schedule: Schedule
) -> tuple[Array, Array, Noise, Array]:
    """Returns x with its estimate of x_0 at a level with signal, that level, and the number of evaluations."""
    x0 = estimate_x0(denoiser, x, now)
    with_signal = choose_level(has_signal(next), level_at_ratio(schedule, _MAX_RATIO), next)

    def skip():
        moved = ddim_step(x, x0, now, with_signal)
        return moved, estimate_x0(denoiser, moved, with_signal)

    x, x0 = lax.cond(has_signal(now), lambda: (x, x0), skip)
    return x, x0, choose_level(has_signal(now), now, with_signal), jnp.where(has_signal(now), 1, 2)


def _mean(weights: Array, values: Array) -> Array:
    """Returns the mean of `values` [N, B, ...] under weights [N] or [N, B, 1, ...]."""
    return jnp.sum(weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim)) * values, axis=0)
