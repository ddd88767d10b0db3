"""Single-step samplers of higher order: several evaluations within a step, and no history."""

from jax import Array, lax
from jax import numpy as jnp

from diffjax.diffusion.denoiser import Denoiser
from diffjax.diffusion.noise import Noise, ddim_step, eps_from_x0, flow_time, log_snr, transition_variance
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.samplers.base import (
    Sampler,
    check_order,
    choose_level,
    estimate_x0,
    exponential_mean,
    half_log_snr_gain,
    has_signal,
    is_short,
    level_at_ratio,
    level_between,
    lowered,
    no_history,
    x0_from_eps,
)


def heun(*, velocity: Array | bool = False) -> Sampler:
    """Heun's second-order method: two evaluations per step.

    Averages eps along sigma / alpha as EDM does, and takes Euler's step, of one evaluation, in the last step and in
    steps that are too long for the correction: see `base.is_short`.

    Args:
      velocity: whether to average the velocity eps - x_0 along the time of the rectified flow instead, as flow matching
        does. It has bounds at every level, so that only the last step is Euler's.

    Reference: EDM (Karras et al. 2022), algorithm 1.
    """

    def step(noise, denoiser, carry, x, now, next):
        del noise
        return _heun_step(denoiser, x, now, next, velocity), carry

    return Sampler(no_history, step)


def edm(
    *,
    schedule: Schedule,
    steps: Array | int,
    churn: Array | float = 0.0,
    noise: Array | float = 1.0,
    low: Array | float = 0.0,
    high: Array | float = float("inf"),
    beyond: Array | bool = False,
    order: Array | int = 2,
) -> Sampler:
    """EDM's stochastic sampler: adds noise, then takes Heun's step. Equals `heun` at churn 0, or `euler` at order 1.

    The added noise moves x to a noisier level of the process. Takes Euler's step if the step is too long for the
    correction: see `base.is_short`.

    Args:
      schedule: noise level at a timestep.
      steps: number of steps of the grid.
      churn: S_churn, >= 0.
      noise: S_noise, about 1.
      low: S_tmin, of sigma / alpha.
      high: S_tmax, of sigma / alpha.
      beyond: whether noise is added beyond the last level too, as in the paper, where the network is given noise
        levels above those of training. Otherwise such levels are replaced by the last one.
      order: 2, or 1 for Euler's step, of one evaluation, as in k-diffusion's `sample_euler`.

    Reference: EDM (Karras et al. 2022), algorithm 2.
    """
    check_order(order, 2)

    def step(step_noise, denoiser, carry, x, now, next):
        sigma = now.sigma / now.alpha
        churned = (low <= sigma) & (sigma <= high) & has_signal(now)
        gamma = jnp.where(churned, jnp.minimum(churn / steps, 2**0.5 - 1), 0.0)
        more = _noisier(schedule, now, gamma, beyond)
        more = choose_level(gamma > 0, more, now)
        added = noise * jnp.sqrt(transition_variance(more, now))
        added = jnp.where(gamma > 0, added, 0.0)
        x = jnp.where(gamma > 0, more.alpha / now.alpha, 1.0) * x + added * step_noise(now, next)
        return _heun_step(denoiser, x, more, next, order=order), carry

    return Sampler(no_history, step)


def restart(
    *,
    schedule: Schedule,
    low: Array | float = 0.1,
    high: Array | float = 2.0,
    repeats: Array | int = 2,
    inner_steps: Array | int = 9,
) -> Sampler:
    """Restart: Heun's method that goes back to more noise several times, which contracts errors of earlier steps.

    At the first level of the grid that is at most `low`, or else at the last one with noise, noise is added up to
    `high`, and `inner_steps` steps of Heun on EDM's grid return to that level. The authors' code restarts at the level
    that is nearest to t_min, on either side. Equals `heun` if that level is not below `high`, as on a grid of one step.

    Args:
      schedule: noise level at a timestep.
      low: t_min, of sigma / alpha.
      high: t_max, of sigma / alpha, above `low` and at most 1000, as little signal is left there.
      repeats: K, how many times; 0: `heun`.
      inner_steps: at least 1. N_restart of the authors' code is the number of levels, inner_steps + 1.

    Raises:
      ValueError: an option is out of its range; traced ones are not checked.

    Reference: Xu et al. 2023, "Restart sampling for improving generative processes", algorithm 1, and its code.
    """
    if isinstance(low, int | float) and isinstance(high, int | float) and not 0 < low < high <= 1000:
        raise ValueError(f"low={low:g}, high={high:g}: must be 0 < low < high <= 1000")
    if isinstance(inner_steps, int | float) and not (inner_steps == round(inner_steps) and inner_steps >= 1):
        raise ValueError(f"inner_steps={inner_steps:g}: must be a whole number from 1")

    def step(noise, denoiser, carry, x, now, next):
        is_last = next.sigma == 0
        floor = choose_level(is_last, now, next)
        top, count = level_at_ratio(schedule, high), jnp.asarray(inner_steps, jnp.int32)
        start, end = ((level.sigma / level.alpha) ** (1 / 7) for level in (top, floor))

        def level(i):
            inside = level_at_ratio(schedule, (start + i / count * (end - start)) ** 7)
            return choose_level(i == count, floor, inside)

        is_restart = (now.sigma > low * now.alpha) & (is_last | (next.sigma <= low * next.alpha))
        is_restart &= floor.sigma * top.alpha < top.sigma * floor.alpha
        inner = jnp.where(is_restart, jnp.asarray(repeats, jnp.int32), 0) * count
        main = jnp.where(is_last, inner, 0)  # the step of the grid, before or after those of the restarts

        def move(i, x):
            repeat, j = jnp.divmod(jnp.where(is_last, i, i - 1), count)

            def noised(x):
                std = jnp.sqrt(transition_variance(top, floor))
                return top.alpha / floor.alpha * x + std * noise(top, floor, repeat=repeat + 1)

            x = lax.cond((i != main) & (j == 0), noised, lambda x: x, x)
            return _heun_step(
                denoiser, x, choose_level(i == main, now, level(j)), choose_level(i == main, next, level(j + 1))
            )

        x = move(0, x)  # outside of the loop, as guided_steps.py uses the first evaluation of a step
        return lax.fori_loop(1, inner + 1, move, x), carry

    return Sampler(no_history, step)


def dpm_solver(
    *,
    schedule: Schedule,
    order: Array | int = 2,
    data: Array | bool = False,
    eta: Array | float = 0.0,
) -> Sampler:
    """Single-step DPM-Solver, or DPM-Solver++: `order` evaluations per step, evenly spaced in log-SNR.

    The last step is of first order. So are steps of DPM-Solver that are too long to average eps: see `base.is_short`.

    Args:
      schedule: noise level at a timestep.
      order: 1 to 3.
      data: whether to average estimates of x_0, as DPM-Solver++ does, instead of estimates of eps.
      eta: in [0, 1], noise as in `ddim`: the step goes to a lower level, and noise up to the next one is added.

    Reference: DPM-Solver (Lu et al. 2022), algorithms 1 and 2 with r_1 = 1/2, and 1/3 and 2/3; DPM-Solver++ (Lu et al.
    2022b), algorithm 1.
    """

    check_order(order, 3)

    def step(noise, denoiser, carry, x, now, next):
        down, std = lowered(now, next, eta)
        return _single_step(denoiser, x, now, down, schedule, order, data) + std * noise(now, next), carry

    return Sampler(no_history, step)


def dpm2(*, schedule: Schedule) -> Sampler:
    """Midpoint method on sigma / alpha, with the midpoint in log-SNR; equals `dpm_solver`.

    Args:
      schedule: noise level at a timestep.

    Reference: Crowson's k-diffusion; DPM-Solver-2 (Lu et al. 2022), algorithm 1.
    """
    return dpm_solver(schedule=schedule)


def dpm2_ancestral(*, schedule: Schedule, eta: Array | float = 1.0) -> Sampler:
    """Midpoint method to a lower noise level, then noise up to the next level; equals `dpm_solver(eta=1)`.

    Args:
      schedule: noise level at a timestep.
      eta: see `ddim`.

    Reference: Crowson's k-diffusion.
    """
    return dpm_solver(schedule=schedule, eta=eta)


def dpmpp_2s_ancestral(*, schedule: Schedule, eta: Array | float = 1.0) -> Sampler:
    """DPM-Solver++(2S) to a lower noise level, then noise up; equals `dpm_solver(data=True, eta=1)`.

    Args:
      schedule: noise level at a timestep.
      eta: see `ddim`; 0: DPM-Solver++(2S).

    Reference: Crowson's k-diffusion; DPM-Solver++ (Lu et al. 2022b), algorithm 1.
    """
    return dpm_solver(schedule=schedule, data=True, eta=eta)


def dpmpp_sde(*, schedule: Schedule, eta: Array | float = 1.0, r: Array | float = 0.5) -> Sampler:
    """Stochastic DPM-Solver++: DDIM steps with noise to a middle level, and with x_0 of both over the whole step.

    Two evaluations per step, and one in the last. The noises to the middle and of the whole step are of one Brownian
    path over the time sigma / (alpha + sigma) of a rectified flow, so the order is 2 in distribution. Those of
    k-diffusion are of a path over sigma / alpha.

    Args:
      schedule: noise level at a timestep.
      eta: noise as in `ddim`; 0: DPM-Solver++(2S).
      r: share of the step in log-SNR up to the middle level, above 0 and at most 1. The x_0 of the step is that of the
        middle at 1/2, and otherwise x_0 + (middle x_0 - x_0) / (2 r).

    Raises:
      ValueError: `r` is out of its range; a traced one is not checked.

    Reference: Crowson's k-diffusion; DPM-Solver++ (Lu et al. 2022b), algorithm 1.
    """
    if isinstance(r, int | float) and not 0 < r <= 1:
        raise ValueError(f"r={r:g}: must be above 0 and at most 1")

    def step(noise, denoiser, carry, x, now, next):
        x0 = estimate_x0(denoiser, x, now)
        middle = level_between(schedule, now, next, r)
        share = (flow_time(now) - flow_time(middle)) / (flow_time(now) - flow_time(next))

        def correct():
            down, std = lowered(now, middle, eta)
            first = noise(now, middle)
            ahead = estimate_x0(denoiser, ddim_step(x, x0, now, down) + std * first, middle)
            mixed = (1 - 1 / (2 * r)) * x0 + ahead / (2 * r)
            return mixed, jnp.sqrt(share) * first + jnp.sqrt(1 - share) * noise(middle, next, 1)

        is_long = (next.sigma == 0) | ~has_signal(now)
        x0, whole = lax.cond(is_long, lambda: (x0, noise(now, next)), correct)
        down, std = lowered(now, next, eta)
        return ddim_step(x, x0, now, down) + std * whole, carry

    return Sampler(no_history, step)


def _heun_step(
    denoiser: Denoiser,
    x: Array,
    now: Noise,
    next: Noise,
    velocity: Array | bool = False,
    order: Array | int = 2,
) -> Array:
    """Takes a step of Heun's method, or of Euler's at order 1; for `velocity` see `heun`."""
    velocity = jnp.asarray(velocity, bool)
    x0 = estimate_x0(denoiser, x, now)
    ahead = ddim_step(x, x0, now, next)

    def correct(ahead):
        next_x0 = estimate_x0(denoiser, ahead, next)
        change = eps_from_x0(ahead, next_x0, next) - eps_from_x0(x, x0, now)
        by_eps = (next.sigma - next.alpha / now.alpha * now.sigma) / 2 * change
        by_time = (next.alpha + next.sigma) * (flow_time(next) - flow_time(now)) / 2
        return ahead + jnp.where(velocity, by_time * (change - (next_x0 - x0)), by_eps)

    is_corrected = (jnp.asarray(order) > 1) & (next.sigma > 0) & (velocity | is_short(now, next))
    return lax.cond(is_corrected, correct, lambda ahead: ahead, ahead)


def _noisier(schedule: Schedule, now: Noise, gamma: Array, beyond: Array | bool) -> Noise:
    """Returns the level with 1 + gamma times the sigma / alpha of `now`; for `beyond` see `edm`."""
    level = schedule(schedule.time_at(log_snr(now) - 2 * jnp.log1p(gamma)))
    last = schedule(float(schedule.timesteps))
    sigma = (1 + gamma) * now.sigma
    # alpha = 1 where noise explodes; elsewhere alpha^2 + sigma^2 stays that of the last level
    scale = jnp.where(last.alpha == 1, 1.0, jnp.hypot(last.alpha, last.sigma) / jnp.hypot(now.alpha, sigma))
    outside = Noise(last.t, scale * now.alpha, scale * sigma)
    is_outside = jnp.asarray(beyond, bool) & (sigma * last.alpha > last.sigma * now.alpha)
    return choose_level(is_outside, outside, level)


def _single_step(
    denoiser: Denoiser,
    x: Array,
    now: Noise,
    next: Noise,
    schedule: Schedule,
    order: Array | int,
    data: Array | bool,
) -> Array:
    """Takes a step of DPM-Solver; for the arguments see `dpm_solver`.

    Stage i of n is at the share i / n of the step. Each later stage and the end are reached from the start, with the
    estimate at the start and that of the stage before.
    """
    data = jnp.asarray(data, bool)
    gain = half_log_snr_gain(now, next)
    is_right = jnp.where(
        jnp.asarray(order) == 2, is_short(now, next, level_between(schedule, now, next, 0.5)), is_short(now, next)
    )
    suits = (next.sigma > 0) & jnp.where(data, has_signal(now), is_right)
    stages = jnp.where(suits, jnp.asarray(order, jnp.int32), 1)

    def estimate(x, level):
        x0 = estimate_x0(denoiser, x, level)
        return jnp.where(data, x0, eps_from_x0(x, x0, level))

    def move(first, latest, stage, level):  # from `now`, with `latest` of the stage before
        share = stage / stages
        exponent = jnp.where(data, 1.0, -1.0) * share * gain
        slope = jnp.where(stages == 2, 1.0, exponential_mean(exponent) * stage / (stage - 1))
        mixed = first + jnp.where(stage > 1, slope, 0.0) * (latest - first)
        return ddim_step(x, jnp.where(data, mixed, x0_from_eps(x, mixed, now)), now, level)

    x0 = estimate_x0(denoiser, x, now)
    first = jnp.where(data, x0, eps_from_x0(x, x0, now))

    def evaluate(stage, latest):
        level = level_between(schedule, now, next, stage / stages)
        return estimate(move(first, latest, stage, level), level)

    latest = lax.fori_loop(1, stages, evaluate, first)
    return jnp.where(stages > 1, move(first, latest, stages, next), ddim_step(x, x0, now, next))
