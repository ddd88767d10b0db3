"""Pairs of timesteps in the losses of flow maps. A public function of this file is a choice a config can name.

A choice maps (key, t, sample_time, schedule, step) to a pair (now, next) for one example, next <= now. `t` is the
timestep that `diffusion.time_sampling` sampled, `sample_time(key)` samples another, and `step` is the number of
training steps so far. A discrete schedule has pairs of integers. Choices raise ValueError for invalid options.
"""

import math
from collections.abc import Callable

import jax
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float, Key

from diffjax.diffusion.noise import log_snr
from diffjax.diffusion.noise_schedules import Schedule

Pair = tuple[Float[Array, ""], Float[Array, ""]]
SampleTime = Callable[[Key[Array, ""]], Float[Array, ""]]


def clean(key: Key[Array, ""], t: Array, sample_time: SampleTime, schedule: Schedule, step: Array) -> Pair:
    """Goes to the clean image."""
    del key, sample_time, schedule, step
    return t, jnp.zeros_like(t)


def second_sample(
    key: Key[Array, ""], t: Array, sample_time: SampleTime, schedule: Schedule, step: Array, *, share: float = 0.25
) -> Pair:
    """Samples two timesteps, of which `now` is the larger; next is the other one for a share of the examples, or now.

    Args:
      key, t, sample_time, schedule, step: see above.
      share: fraction of pairs with next < now.

    Reference: MeanFlow (Geng et al. 2025), sec. 4.3; pairs of equal times as in its code.
    """
    del schedule, step
    _check(0 <= share <= 1, f"share={share:g}: must be from 0 to 1")
    other_key, share_key = jax.random.split(key)
    other = sample_time(other_key)
    now, next = jnp.maximum(t, other), jnp.minimum(t, other)
    return now, jnp.where(jax.random.bernoulli(share_key, float(share)), next, now)


def uniform_below(key: Key[Array, ""], t: Array, sample_time: SampleTime, schedule: Schedule, step: Array) -> Pair:
    """Goes to a timestep that is uniform between the first one and `t`; from the first one to the clean image.

    Reference: IMM (Zhou et al. 2025), sec. 4.
    """
    del sample_time, step
    next = schedule.first + (t - schedule.first) * jax.random.uniform(key)
    return t, _below(t, next, schedule)


def dyadic(
    key: Key[Array, ""],
    t: Array,
    sample_time: SampleTime,
    schedule: Schedule,
    step: Array,
    *,
    steps: int = 128,
    share: float = 0.25,
) -> Pair:
    """Samples a step of T / 2^k on the grid of such steps for a share of the examples; for the others next = now.

    Args:
      key, t, sample_time, schedule, step: see above.
      steps: number of the shortest steps in T, a power of two from 2: k is uniform in 0, ..., log2(steps) - 1.
      share: fraction of pairs with next < now.

    Reference: shortcut models (Frans et al. 2024), algorithm 1.
    """
    del sample_time, step
    _check_grid(steps, schedule)
    _check(steps >= 2 and 2.0 ** round(math.log2(steps)) == steps, f"steps={steps:g}: must be a power of two from 2")
    _check(0 <= share <= 1, f"share={share:g}: must be from 0 to 1")
    exponent_key, place_key, share_key = jax.random.split(key, 3)
    count = 2.0 ** jax.random.randint(exponent_key, (), 0, round(math.log2(steps)))
    place = jnp.floor(count * jax.random.uniform(place_key)) + 1.0
    now, next = _step_down(place, count, 0.0, schedule)
    is_step = jax.random.bernoulli(share_key, float(share))
    return jnp.where(is_step, now, t), jnp.where(is_step, next, t)


def grid(
    key: Key[Array, ""],
    t: Array,
    sample_time: SampleTime,
    schedule: Schedule,
    step: Array,
    *,
    steps: int = 18,
    rho: float = 0.0,
) -> Pair:
    """Samples a step of a fixed grid.

    Args:
      key, t, sample_time, schedule, step: see above.
      steps: number of steps of the grid.
      rho: 0: evenly spaced timesteps from T, the grid `trailing` (progressive distillation); from 1 to 100: (sigma /
        alpha) to the power 1 / rho is evenly spaced down to the first level (consistency distillation, rho = 7).

    Reference: Salimans & Ho 2022, algorithm 2; Song et al. 2023, algorithm 2.
    """
    del t, sample_time, step
    _check_grid(steps, schedule)
    if rho:
        _check_rho(rho)
    place = jax.random.randint(key, (), 1, int(steps) + 1).astype(jnp.float32)
    return _step_down(place, steps, rho, schedule)


def skip(
    key: Key[Array, ""], t: Array, sample_time: SampleTime, schedule: Schedule, step: Array, *, share: float = 0.02
) -> Pair:
    """Goes down by a fixed share of T, at most to the clean image.

    Args:
      key, t, sample_time, schedule, step: see above.
      share: length of the step as a fraction of T, above 0: k / T, k = 20 of 1000 in latent consistency models.

    Reference: Luo et al. 2023, "Latent consistency models", sec. 4.3.
    """
    del key, sample_time, step
    _check(0 < share <= 1, f"share={share:g}: must be above 0 and to 1")
    return t, _below(t, t - share * schedule.timesteps, schedule)


def doubling(
    key: Key[Array, ""],
    t: Array,
    sample_time: SampleTime,
    schedule: Schedule,
    step: Array,
    *,
    start: int = 10,
    end: int = 1280,
    steps: int = 400_000,
    rho: float = 7.0,
) -> Pair:
    """Moves `t` to a grid of iCT, and goes to the next level there; the number of levels doubles during training.

    Args:
      key, t, sample_time, schedule, step: see above.
      start: s_0, number of intervals at first.
      end: s_1, number of intervals at last, at least `start`.
      steps: K, number of training steps over which it grows.
      rho: from 1 to 100; the levels of sigma / alpha to the power 1 / rho are evenly spaced.

    Reference: Song & Dhariwal 2024 (iCT), sec. 3.4 and 3.5.
    """
    del key, sample_time
    _check_growth(start, end, steps)
    stages = math.floor(math.log2(end / start)) + 1
    intervals = jnp.minimum(start * 2.0 ** jnp.floor(step * stages / steps), end)
    return _step_at(t, intervals, rho, schedule)


def square_root(
    key: Key[Array, ""],
    t: Array,
    sample_time: SampleTime,
    schedule: Schedule,
    step: Array,
    *,
    start: int = 2,
    end: int = 150,
    steps: int = 800_000,
    rho: float = 7.0,
) -> Pair:
    """Moves `t` to a grid of consistency training, whose number of levels grows as the root of the training steps.

    Args:
      key, t, sample_time, schedule, step: see above.
      start: s_0, number of levels at first, from 2.
      end: s_1, number of intervals at last, at least `start`.
      steps: K, number of training steps over which it grows.
      rho: from 1 to 100; the levels of sigma / alpha to the power 1 / rho are evenly spaced.

    Reference: Song et al. 2023, "Consistency models", appendix C.
    """
    del key, sample_time
    _check_growth(start, end, steps)
    _check(start >= 2, f"start={start:g}: must be at least 2")
    progress = jnp.minimum(step / steps, 1.0)
    intervals = jnp.ceil(jnp.sqrt(progress * ((end + 1) ** 2 - start**2) + start**2) - 1.0)
    return _step_at(t, jnp.minimum(intervals, end), rho, schedule)


def shrinking(
    key: Key[Array, ""],
    t: Array,
    sample_time: SampleTime,
    schedule: Schedule,
    step: Array,
    *,
    q: float = 2.0,
    every: int = 25_000,
    k: float = 8.0,
    b: float = 1.0,
) -> Pair:
    """Goes from sigma down to sigma (1 - (1 + k sigmoid(-b sigma)) / q^(1 + s)), s = floor(step / `every`); at least 0.

    The first stage is near to denoising, in which a run starts well. Here sigma is sigma / alpha.

    Args:
      key, t, sample_time, schedule, step: see above.
      q: factor by which intervals shrink from stage to stage, above 1.
      every: training steps of a stage.
      k, b: adapt the interval to the noise level.

    Reference: Geng et al. 2024, "Consistency models made easy" (ECT), its training schedule.
    """
    del key, sample_time
    _check(q > 1, f"q={q:g}: must be above 1")
    _check_whole("every", every)
    now = schedule(t)
    sigma = now.sigma / jnp.maximum(now.alpha, 1e-6)
    ratio = 1.0 - (1.0 + k * jax.nn.sigmoid(-b * sigma)) / q ** (1.0 + jnp.floor(step / every))
    next = schedule.time_at(log_snr(now) - 2.0 * jnp.log(jnp.maximum(ratio, 1e-6)))
    # Where the wanted level is below the first one, the image itself is the target.
    first = schedule(schedule.first)
    is_clean = ratio * sigma < first.sigma / first.alpha
    return t, _below(t, jnp.where(is_clean, 0.0, jnp.minimum(next, t)), schedule)


def _check(is_valid: bool, problem: str) -> None:
    if not is_valid:
        raise ValueError(problem)


def _check_whole(name: str, value: float) -> None:
    _check(value >= 1 and value == round(value), f"{name}={value:g}: must be a whole number, at least 1")


def _check_grid(steps: float, schedule: Schedule) -> None:
    """Raises ValueError for steps that are not whole, or end below the first level."""
    _check_whole("steps", steps)
    most = round(schedule.timesteps / schedule.first)
    _check(steps <= most, f"steps={steps:g}: must be at most {most}, the levels of the schedule")


def _check_growth(start: float, end: float, steps: float) -> None:
    for name, value in (("start", start), ("end", end), ("steps", steps)):
        _check_whole(name, value)
    _check(end >= start, f"end={end:g}: must be at least start={start:g}")


def _check_rho(rho: float) -> None:
    _check(1 <= rho <= 100, f"rho={rho:g}: must be from 1 to 100")


def _on_grid(t: Array, schedule: Schedule) -> Array:
    """Rounds to the nearest level if the schedule is discrete."""
    return t if schedule.continuous else jnp.round(t)


def _below(t: Array, next: Array, schedule: Schedule) -> Array:
    """Returns the level nearest to `next` that is below level `t`; 0, the clean image, below the first level.

    On a continuous schedule `next` may equal `t` by rounding.
    """
    if not schedule.continuous:
        next = jnp.minimum(jnp.round(next), t - 1.0)
    return jnp.where((next < schedule.first) | (t <= schedule.first), 0.0, next)


def _ends(schedule: Schedule, rho: float) -> tuple[Array, Array]:
    """Returns (sigma / alpha)^(1 / rho) of the first level and of the last one with some signal."""
    first, last = schedule(schedule.first), schedule(schedule.timesteps - 1e-3 * schedule.timesteps)
    end = schedule(float(schedule.timesteps))
    last = jax.tree.map(lambda a, b: jnp.where(end.alpha > 0, a, b), end, last)
    return jnp.exp(-log_snr(first) / (2.0 * rho)), jnp.exp(-log_snr(last) / (2.0 * rho))


def _step_at(t: Array, intervals: Array, rho: float, schedule: Schedule) -> Pair:
    """Returns the step of a grid of `intervals` in which `t` lies, for `rho` see `grid`."""
    _check_rho(rho)
    low, high = _ends(schedule, rho)
    place = (jnp.exp(-log_snr(schedule(t)) / (2.0 * rho)) - low) / (high - low) * intervals
    place = jnp.clip(jnp.floor(place), 0.0, intervals - 1.0)
    return _step_down(place + 1.0, intervals, rho, schedule)


def _step_down(place: Array, intervals: Array | float, rho: float, schedule: Schedule) -> Pair:
    """Returns the timesteps of levels `place` and `place - 1` of a grid of `intervals`, for `rho` see `grid`.

    The grid of `rho` above 0 starts at the first level, the other one at the clean image. Levels of a fine grid that
    round to the same integer are replaced by neighbouring ones.
    """

    def time_at(place: Array) -> Array:
        if not rho:
            return _on_grid(schedule.timesteps * place / intervals, schedule)
        low, high = _ends(schedule, rho)
        root = low + (high - low) * place / intervals
        t = _on_grid(schedule.time_at(-2.0 * rho * jnp.log(root)), schedule)
        return jnp.where(place > 0, t, schedule.first)  # exactly, for its boundary condition

    now = time_at(place)
    return now, _below(now, time_at(place - 1.0), schedule)
