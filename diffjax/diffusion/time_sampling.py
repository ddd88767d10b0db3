"""Sampling of training timesteps. A public function of this file is a choice a config can name."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float, Key

from diffjax.diffusion.noise_schedules import Schedule

# Kept from step to step. Updates are linear in means over the batch, so that devices can average the state.
State = Mapping[str, Array]


class TimeSampler(NamedTuple):
    """A distribution of timesteps.

    Attributes:
      init: maps the schedule to the initial state.
      sample: maps (key, schedule, state) to a timestep and a factor on its loss, for one example.
      update: maps (state, timesteps [B], losses before the factor [B]) to the new state.
    """

    init: Callable[[Schedule], State]
    sample: Callable[[Key[Array, ""], Schedule, State], tuple[Array, Array]]
    update: Callable[[State, Float[Array, " B"], Float[Array, " B"]], State]


def uniform() -> TimeSampler:
    """Samples timesteps uniformly over {1, ..., T}, or over [first, T] on a continuous schedule."""

    def sample(key, schedule):
        if schedule.continuous:
            return jax.random.uniform(key, (), minval=schedule.first, maxval=schedule.timesteps)
        return jax.random.randint(key, (), 1, schedule.timesteps + 1).astype(jnp.float32)

    return _stateless(sample)


def log_normal(*, mean: float = -1.2, std: float = 1.2) -> TimeSampler:
    """Samples log(sigma / alpha) ~ N(mean, std^2), clipped to the schedule's range.

    Reference: EDM (Karras et al. 2022), table 1.
    """
    _check_std(std)

    def sample(key, schedule):
        log_sigma = mean + std * jax.random.normal(key)
        return _snap_to_grid(schedule.time_at(-2.0 * log_sigma), schedule)

    return _stateless(sample)


def logit_normal(*, mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """Samples logit(t / T) ~ N(mean, std^2), for rectified flows.

    Reference: Esser et al. 2024, eq. 19.
    """
    _check_std(std)

    def sample(key, schedule):
        return _snap_to_grid(schedule.timesteps * jax.nn.sigmoid(mean + std * jax.random.normal(key)), schedule)

    return _stateless(sample)


def importance(*, horizon: float = 1000.0, uniform_share: float = 0.001) -> TimeSampler:
    """Loss-aware importance sampling: p_t ~ sqrt(E[L_t^2]). Requires a discrete schedule.

    E[L_t^2] is a moving average over training steps, where the paper keeps the last ten losses of each t: sums over the
    batch do not depend on the number of devices. About 10 T / batch size steps equal the paper's history. Timesteps are
    uniform for the first `horizon` steps.

    Args:
      horizon: of the moving average, in training steps; at least 1.
      uniform_share: proportion of uniform samples, in [0, 1], so that no timestep is starved.

    Raises:
      ValueError: an option is outside its range, or, in `init`, the schedule is continuous.

    Reference: Improved DDPM (Nichol & Dhariwal 2021), sec. 3.3.
    """

    if not (1 <= horizon < float("inf") and 0 <= uniform_share <= 1):
        raise ValueError(
            f"importance(horizon={horizon:g}, uniform_share={uniform_share:g}): horizon must be at least 1 and finite, "
            "uniform_share from 0 to 1"
        )

    def init(schedule):
        if schedule.continuous:
            raise ValueError("importance sampling of timesteps requires a discrete schedule; set continuous=False")
        return {
            "squared_losses": jnp.zeros(schedule.timesteps),
            "counts": jnp.zeros(schedule.timesteps),
            "age": jnp.zeros(()),
        }

    def sample(key, schedule, state):
        visited = state["counts"] > 0
        squares = jnp.where(visited, state["squared_losses"] / jnp.where(visited, state["counts"], 1.0), 0.0)
        typical = jnp.sum(jnp.where(visited, squares, 0.0)) / jnp.maximum(jnp.sum(visited), 1)
        size = jnp.sqrt(jnp.where(visited, squares, typical))
        share = jnp.where((state["age"] < horizon) | (jnp.sum(size) == 0), 1.0, uniform_share)
        p = share / schedule.timesteps + (1 - share) * size / jnp.maximum(jnp.sum(size), 1e-30)
        index = jax.random.categorical(key, jnp.log(p))
        return index + 1.0, 1.0 / (schedule.timesteps * p[index])

    def update(state, times, losses):
        hit = jax.nn.one_hot(times.astype(jnp.int32) - 1, state["counts"].shape[0])  # [B, T]
        decay = 1.0 - 1.0 / horizon
        return {
            "squared_losses": decay * state["squared_losses"] + jnp.mean(hit * losses[:, None] ** 2, axis=0),
            "counts": decay * state["counts"] + jnp.mean(hit, axis=0),
            "age": state["age"] + 1.0,
        }

    return TimeSampler(init, sample, update)


def _check_std(std: float) -> None:
    if not 0 < std < float("inf"):
        raise ValueError(f"std={std:g}: must be a finite number above 0")


def _stateless(sample: Callable) -> TimeSampler:
    def with_factor(key, schedule, state):
        return sample(key, schedule), jnp.ones(())

    return TimeSampler(lambda schedule: {}, with_factor, lambda state, times, losses: state)


def _snap_to_grid(t: Array, schedule: Schedule) -> Array:
    """Clips to the range of the schedule, and rounds to the nearest level if it is discrete."""
    t = jnp.clip(t, schedule.first, schedule.timesteps)
    return t if schedule.continuous else jnp.round(t)
