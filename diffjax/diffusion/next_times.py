"""Pairs of timesteps in the losses of flow maps. A public function of this file is a choice a config can name.

A choice maps (key, t, sample_time, schedule, step) to a pair (now, next) for one example, next <= now. `t` is the
timestep that `diffusion.time_sampling` sampled, `sample_time(key)` samples another, and `step` is the number of
training steps so far. A discrete schedule has pairs of integers.
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
    """Samples two timesteps for a share of the examples; for the others next = now.

    Args:
      key, t, sample_time, schedule, step: see above.
      share: fraction of pairs with next < now.

    Reference: MeanFlow (Geng et al. 2025), sec. 4.3.
    """
    del schedule, step
    _check_share("second_sample", share)
    other_key, share_key = jax.random.split(key)
    other = sample_time(other_key)
    other = jnp.where(jax.random.bernoulli(share_key, float(share)), other, t)
    return jnp.maximum(t, other), jnp.minimum(t, other)


def uniform_below(key: Key[Array, ""], t: Array, sample_time: SampleTime, schedule: Schedule, step: Array) -> Pair:
    """Goes to a timestep that is uniform between the first one and `t`.

    Reference: IMM (Zhou et al. 2025), sec. 4.
    """
    del sample_time, step
    next = schedule.first + (t - schedule.first) * jax.random.uniform(key)
    return t, _on_grid(next, schedule)


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
      steps: number of the shortest steps in T, a power of two: k is uniform in 0, ..., log2(steps) - 1.
      share: fraction of pairs with next < now.

    Reference: shortcut models (Frans et al. 2024), algorithm 1.
    """
    del sample_time, step
    _check_steps("dyadic", steps)
    _check_share("dyadic", share)
    exponent_key, place_key, share_key = jax.random.split(key, 3)
    count = 2.0 ** jax.random.randint(exponent_key, (), 0, max(1, int(steps).bit_length() - 1))
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
      rho: 0: evenly spaced timesteps from T, the grid `trailing` (progressive distillation); above 0: (sigma / alpha)
        to the power 1 / rho is evenly spaced down to the first level (consistency distillation, rho = 7).

    Reference: Salimans & Ho 2022, algorithm 2; Song et al. 2023, algorithm 2.
    """
    del t, sample_time, step
    _check_steps("grid", steps)
    place = jax.random.randint(key, (), 1, int(steps) + 1).astype(jnp.float32)
    return _step_down(place, steps, rho, schedule)


def skip(
    key: Key[Array, ""], t: Array, sample_time: SampleTime, schedule: Schedule, step: Array, *, share: float = 0.02
) -> Pair:
    """Goes down by a fixed share of T, at most to the clean image.

    Args:
      key, t, sample_time, schedule, step: see above.
      share: length of the step as a fraction of T: k / T, k = 20 of 1000 in latent consistency models.

    Reference: Luo et al. 2023, "Latent consistency models", sec. 4.3.
    """
    del key, sample_time, step
    _check_share("skip", share)
    next = _on_grid(t - share * schedule.timesteps, schedule)
    return t, jnp.where(next >= schedule.first, next, 0.0)


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
      end: s_1, number of intervals at last.
      steps: K, number of training steps over which it grows.
      rho: the levels of sigma / alpha to the power 1 / rho are evenly spaced.

    Reference: Song & Dhariwal 2024 (iCT), sec. 3.4 and 3.5.
    """
    del key, sample_time
    _check_steps("doubling", start)
    stages = math.floor(math.log2(end / start)) + 1
    intervals = jnp.minimum(start * 2.0 ** jnp.floor(step * stages / steps), end)
    low, high = _ends(schedule, rho)
    place = (jnp.exp(-log_snr(schedule(t)) / (2.0 * rho)) - low) / (high - low) * intervals
    place = jnp.clip(jnp.floor(place), 0.0, intervals - 1.0)
    return _step_down(place + 1.0, intervals, rho, schedule)


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
      q: factor by which intervals shrink from stage to stage.
      every: training steps of a stage.
      k, b: adapt the interval to the noise level.

    Reference: Geng et al. 2024, "Consistency models made easy" (ECT), its training schedule.
    """
    del key, sample_time
    now = schedule(t)
    sigma = now.sigma / now.alpha
    ratio = 1.0 - (1.0 + k * jax.nn.sigmoid(-b * sigma)) / q ** (1.0 + jnp.floor(step / every))
    next = schedule.time_at(log_snr(now) - 2.0 * jnp.log(jnp.maximum(ratio, 1e-6)))
    next = _on_grid(next, schedule)
    # Where the wanted level is below the first one, the image itself is the target.
    first = schedule(schedule.first)
    is_clean = ratio * sigma < first.sigma / first.alpha
    return t, jnp.where(is_clean, 0.0, jnp.minimum(next, t))


def _check_steps(name: str, steps: float) -> None:
    if steps < 1 or steps != round(steps):
        raise ValueError(f"{name}: the number of steps must be a whole number, at least 1, not {steps:g}")


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name}(share={share:g}): must be from 0 to 1")


def _on_grid(t: Array, schedule: Schedule) -> Array:
    """Rounds to the nearest level if the schedule is discrete."""
    return t if schedule.continuous else jnp.round(t)


def _ends(schedule: Schedule, rho: float) -> tuple[Array, Array]:
    """Returns (sigma / alpha)^(1 / rho) of the first level and of the last one with some signal."""
    first, last = schedule(schedule.first), schedule(schedule.timesteps - 1e-3 * schedule.timesteps)
    end = schedule(float(schedule.timesteps))
    last = jax.tree.map(lambda a, b: jnp.where(end.alpha > 0, a, b), end, last)
    return jnp.exp(-log_snr(first) / (2.0 * rho)), jnp.exp(-log_snr(last) / (2.0 * rho))


def _step_down(place: Array, intervals: Array | float, rho: float, schedule: Schedule) -> Pair:
    """Returns the timesteps of levels `place` and `place - 1` of a grid of `intervals`, for `rho` see `grid`.

    The grid of `rho` above 0 starts at the first level, the other one at the clean image.
    """

    def time_at(place: Array) -> Array:
        if not rho:
            return _on_grid(schedule.timesteps * place / intervals, schedule)
        low, high = _ends(schedule, rho)
        root = low + (high - low) * place / intervals
        t = _on_grid(schedule.time_at(-2.0 * rho * jnp.log(root)), schedule)
        return jnp.where(place > 0, t, schedule.first)  # exactly, for its boundary condition

    return time_at(place), time_at(place - 1.0)
