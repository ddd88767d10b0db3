"""The input of a training loss: examples, each noised at a timestep of its own."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.couplings import Pairs
from diffjax.diffusion.next_times import Pair
from diffjax.diffusion.noise import Noise, perturb
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.random import Keys, normal_each, split_each
from diffjax.diffusion.time_sampling import State, TimeSampler


class NoisedBatch(NamedTuple):
    """Examples noised at timesteps of their own.

    Attributes:
      x0: clean examples.
      eps: noise, N(0, I); given x_0 it has another distribution if it is coupled.
      x: noised examples x_t = alpha x_0 + sigma eps.
      noise: noise level of each example, leaves [B]; `noise.t` are the timesteps.
      loss_factor: factor on the loss of each example, which corrects for timesteps that are not sampled uniformly.
      next: level that a flow map goes to from `noise`, leaves [B]; None: the loss has one level per example.
      step: number of training steps so far; None as `next`.
    """

    x0: Float[Array, "B ..."]
    eps: Float[Array, "B ..."]
    x: Float[Array, "B ..."]
    noise: Noise
    loss_factor: Float[Array, " B"]
    next: Noise | None = None
    step: Array | int | None = None

    @classmethod
    def sample(
        cls,
        time_keys: Keys,
        eps_keys: Keys,
        x0: Float[Array, "B ..."],
        *,
        schedule: Schedule,
        time_sampler: TimeSampler,
        state: State,
        next_times: Callable[..., Pair] | None = None,
        step: Array | int = 0,
        couple: Callable[[Array, Array], Pairs] | None = None,
        group: int = 1,
    ) -> "NoisedBatch":
        """Samples a timestep and noise for each example, and noises it.

        Args:
          time_keys: [B], of the timesteps; consumed.
          eps_keys: [B], of the noise; consumed.
          x0: clean examples [B, ...].
          schedule: noise level at a timestep.
          time_sampler: a choice of time_sampling.py.
          state: what `time_sampler` remembers; `time_sampler.init(schedule)` at first.
          next_times: a choice of next_times.py; None: one level per example.
          step: number of training steps so far.
          couple: (x_0, independent noise) -> coupled x_0 and noise, see couplings.py; None: they are independent.
          group: number of consecutive examples that have the same timesteps; B is a multiple of it.

        Returns:
          The noised batch.

        Reference: DDPM (Ho et al. 2020), algorithm 1.
        """
        chex.assert_equal_shape_prefix((time_keys, eps_keys, x0), 1)
        if len(x0) % group:
            raise ValueError(f"{len(x0)} examples are not whole groups of {group}")
        if group > 1:
            time_keys = time_keys[jnp.arange(len(x0)) // group * group]
        next_keys, next = time_keys, None
        if next_times is not None:
            time_keys, next_keys = split_each(time_keys)
        t, loss_factor = jax.vmap(time_sampler.sample, (0, None, None))(time_keys, schedule, state)
        if next_times is not None:
            choose = next_times

            def pair(key, t):
                return choose(key, t, lambda key: time_sampler.sample(key, schedule, state)[0], schedule, step)

            t, next_t = jax.vmap(pair)(next_keys, t)
            next = schedule(next_t)
        eps, noise = normal_each(eps_keys, x0.shape[1:]), schedule(t)
        if couple is not None:
            x0, eps = couple(x0, eps)
        x = jax.vmap(perturb)(x0, eps, noise)
        return cls(x0, eps, x, noise, loss_factor, next, None if next is None else step)
