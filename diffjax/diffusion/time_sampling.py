"""How training draws its times. A public function of this file is a choice a config can name."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float, Key

from diffjax.diffusion.levels import Schedule

State = Mapping[
    str, Array
]  # what is remembered from step to step; averaged over devices, so linear in the batch's mean


class Times(NamedTuple):
    """A way of drawing times. `draw` works on one example, `update` on a batch."""

    init: Callable[[Schedule], State]
    draw: Callable[[Key[Array, ""], Schedule, State], tuple[Array, Array]]  # -> (time, factor on the loss)
    update: Callable[[State, Float[Array, "B"], Float[Array, "B"]], State]  # (state, times, losses before the factor)


def uniform() -> Times:
    """Uniform over {1, ..., T}, or over [first, T] where the schedule is continuous."""

    def draw(key, schedule):
        if schedule.continuous:
            return jax.random.uniform(key, (), minval=schedule.first, maxval=schedule.timesteps)
        return jax.random.randint(key, (), 1, schedule.timesteps + 1).astype(jnp.float32)

    return _without_memory(draw)


def log_normal(*, mean: float = -1.2, std: float = 1.2) -> Times:
    """log(sigma / alpha) ~ N(mean, std^2): EDM (Karras et al. 2022), table 1. What is beyond an end stands there."""
    _check_std(std)

    def draw(key, schedule):
        log_sigma = mean + std * jax.random.normal(key)
        return _settle(schedule.time_at(-2.0 * log_sigma), schedule)

    return _without_memory(draw)


def logit_normal(*, mean: float = 0.0, std: float = 1.0) -> Times:
    """logit(t / T) ~ N(mean, std^2): Esser et al. 2024, eq. 19, for rectified flows."""
    _check_std(std)

    def draw(key, schedule):
        return _settle(schedule.timesteps * jax.nn.sigmoid(mean + std * jax.random.normal(key)), schedule)

    return _without_memory(draw)


def importance(*, horizon: float = 1000.0, uniform_share: float = 0.001) -> Times:
    """Loss-aware importance sampling: p_t ~ sqrt(E[L_t^2]): Improved DDPM (Nichol & Dhariwal 2021), sec. 3.3.

    E[L_t^2] is an average that forgets over `horizon` training steps, where the paper keeps each t's last ten losses:
    sums over the batch are the same on any number of devices. About 10 T / batch size steps are the paper's memory; for
    as long, times are uniform. `uniform_share` of the draws stay uniform, so that no t is forgotten.
    """

    if not (1 <= horizon < float("inf") and 0 <= uniform_share <= 1):
        raise ValueError(
            f"the times importance(horizon={horizon:g}, uniform_share={uniform_share:g}) need a horizon from 1 step "
            "and a share from 0 to 1"
        )

    def init(schedule):
        if schedule.continuous:
            raise ValueError("importance sampling of times needs a discrete schedule: set continuous=False")
        return {"squares": jnp.zeros(schedule.timesteps), "draws": jnp.zeros(schedule.timesteps), "age": jnp.zeros(())}

    def draw(key, schedule, state):
        seen = state["draws"] > 0
        squares = jnp.where(seen, state["squares"] / jnp.where(seen, state["draws"], 1.0), 0.0)
        typical = jnp.sum(jnp.where(seen, squares, 0.0)) / jnp.maximum(jnp.sum(seen), 1)
        size = jnp.sqrt(jnp.where(seen, squares, typical))
        share = jnp.where((state["age"] < horizon) | (jnp.sum(size) == 0), 1.0, uniform_share)
        p = share / schedule.timesteps + (1 - share) * size / jnp.maximum(jnp.sum(size), 1e-30)
        index = jax.random.categorical(key, jnp.log(p))
        return index + 1.0, 1.0 / (schedule.timesteps * p[index])

    def update(state, times, losses):
        hit = jax.nn.one_hot(times.astype(jnp.int32) - 1, state["draws"].shape[0])  # [B, T]
        keep = 1.0 - 1.0 / horizon
        return {
            "squares": keep * state["squares"] + jnp.mean(hit * losses[:, None] ** 2, axis=0),
            "draws": keep * state["draws"] + jnp.mean(hit, axis=0),
            "age": state["age"] + 1.0,
        }

    return Times(init, draw, update)


def _check_std(std: float) -> None:
    if not 0 < std < float("inf"):
        raise ValueError(f"the times have std={std:g}: a finite number above 0")


def _without_memory(draw: Callable) -> Times:
    def with_factor(key, schedule, state):
        return draw(key, schedule), jnp.ones(())

    return Times(lambda schedule: {}, with_factor, lambda state, times, losses: state)


def _settle(t: Array, schedule: Schedule) -> Array:
    """The time itself on a continuous schedule, the nearest level on a discrete one."""
    t = jnp.clip(t, schedule.first, schedule.timesteps)
    return t if schedule.continuous else jnp.round(t)
