"""The input of a training loss: examples, each noised at a timestep of its own."""

from typing import NamedTuple

import chex
import jax
from jax import Array
from jaxtyping import Float

from diffjax.diffusion.noise import Noise, perturb
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.random import Keys, normal_each
from diffjax.diffusion.time_sampling import State, TimeSampler


class NoisedBatch(NamedTuple):
    """Examples noised at timesteps of their own.

    Attributes:
      x0: clean examples.
      eps: noise, N(0, I).
      x: noised examples x_t = alpha x_0 + sigma eps.
      noise: noise level of each example, leaves [B]; `noise.t` are the timesteps.
      loss_factor: factor on the loss of each example, which corrects for timesteps that are not sampled uniformly.
    """

    x0: Float[Array, "B ..."]
    eps: Float[Array, "B ..."]
    x: Float[Array, "B ..."]
    noise: Noise
    loss_factor: Float[Array, " B"]

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
    ) -> "NoisedBatch":
        """Samples a timestep and noise for each example, and noises it.

        Args:
          time_keys: [B], of the timesteps; consumed.
          eps_keys: [B], of the noise; consumed.
          x0: clean examples [B, ...].
          schedule: noise level at a timestep.
          time_sampler: a choice of time_sampling.py.
          state: what `time_sampler` remembers; `time_sampler.init(schedule)` at first.

        Returns:
          The noised batch.

        Reference: DDPM (Ho et al. 2020), algorithm 1.
        """
        chex.assert_equal_shape_prefix((time_keys, eps_keys, x0), 1)
        t, loss_factor = jax.vmap(time_sampler.sample, (0, None, None))(time_keys, schedule, state)
        eps, noise = normal_each(eps_keys, x0.shape[1:]), schedule(t)
        return cls(x0, eps, jax.vmap(perturb)(x0, eps, noise), noise, loss_factor)
