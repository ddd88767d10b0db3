"""Distribution matching distillation. The public function of this file is a loss that a config can name.

A generator samples x_0 in one evaluation, or in a few. It is trained so that its samples, noised to any level, have the
distribution of those of a teacher. The gradient of the KL divergence of the two is the difference of their scores: that
of the teacher, and that of a denoiser of the generator's samples, the fake score, which is trained with the generator.

References:
  Yin et al. 2024a, "One-step diffusion with distribution matching distillation" (DMD).
  Yin et al. 2024b, "Improved distribution matching distillation for fast image synthesis" (DMD2).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.denoiser import Prediction
from diffjax.diffusion.losses import mse
from diffjax.diffusion.noise import Noise, perturb
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.diffusion.random import Keys, normal_each, split_each

# (x [B, ...], noise levels of the examples) -> estimate of x_0
Estimate = Callable[[Float[Array, "B ..."], Noise], Float[Array, "B ..."]]


class DistributionMatching(NamedTuple):
    """The losses of distribution matching.

    Attributes:
      schedule: noise level at a timestep.
      weighting: a choice of loss_weighting.py, for the fake score.
      generator_steps, gan_weight, discriminator_weight, low, high: see `distribution_matching`.
    """

    schedule: Schedule
    weighting: Callable
    generator_steps: int
    gan_weight: float
    discriminator_weight: float
    low: float
    high: float

    def matching_loss(
        self, keys: Keys, x0: Float[Array, "B ..."], real: Estimate, fake: Estimate
    ) -> Float[Array, " B"]:
        """Returns a loss of the generator's samples whose gradient is the difference of scores, at a random level.

        Args:
          keys: [B]; consumed.
          x0: samples of the generator.
          real: denoiser of the teacher.
          fake: denoiser of the generator's samples.
        """
        x, now = self.noise(keys, lax.stop_gradient(x0), self.low, self.high)
        return _difference_loss(x0, real(x, now), fake(x, now))

    def denoising_loss(self, batch: NoisedBatch, prediction: Prediction) -> Float[Array, " B"]:
        """Returns the loss of the fake score, on noised samples of the generator."""
        return batch.loss_factor * mse(batch, prediction, weighting=self.weighting)

    def noise(
        self, keys: Keys, x0: Float[Array, "B ..."], low: float = 0.0, high: float = 1.0
    ) -> tuple[Float[Array, "B ..."], Noise]:
        """Noises examples to levels at uniform timesteps of the schedule, between fractions `low` and `high` of T.

        Args:
          keys: [B]; consumed.
          x0: clean examples.
          low: fraction of the lowest timestep.
          high: fraction of the highest timestep.

        Returns:
          Noised examples, and their levels.
        """
        time_keys, eps_keys = split_each(keys)
        first, last = (max(fraction * self.schedule.timesteps, self.schedule.first) for fraction in (low, high))
        if self.schedule.continuous:
            t = jax.vmap(lambda key: jax.random.uniform(key, (), minval=first, maxval=last))(time_keys)
        else:
            t = jax.vmap(lambda key: jax.random.randint(key, (), round(first), round(last) + 1))(time_keys)
        now = self.schedule(t.astype(jnp.float32))
        return jax.vmap(perturb)(x0, normal_each(eps_keys, x0.shape[1:]), now), now


def distribution_matching(
    *,
    schedule: Schedule,
    weighting: Callable,
    generator_steps: int = 1,
    gan_weight: float = 0.003,
    discriminator_weight: float = 0.01,
    low: float = 0.02,
    high: float = 0.98,
) -> DistributionMatching:
    """Returns the losses of distribution matching distillation (DMD2). Requires a teacher.

    Args:
      schedule: noise level at a timestep.
      weighting: a choice of loss_weighting.py, for the fake score.
      generator_steps: steps of the generator, spaced evenly in time from T (grid `trailing`). With several, it is
        trained at the levels of all steps, on its own samples: backward simulation.
      gan_weight: factor of the adversarial loss of the generator; 0: no discriminator.
      discriminator_weight: factor of the discriminator's loss in the loss of the fake score, whose features it has.
      low: lowest timestep at which distributions are matched, as a fraction of T.
      high: highest timestep.

    Raises:
      ValueError: an option is out of its range.

    Reference: Yin et al. 2024b, sec. 4; the defaults are those of its code for ImageNet.
    """
    if generator_steps < 1 or generator_steps != int(generator_steps):
        raise ValueError(f"generator_steps={generator_steps:g}: must be a whole number, at least 1")
    if not 0 <= low < high <= 1:
        raise ValueError(f"low={low:g}, high={high:g}: must be fractions of T with low < high, from 0 to 1")
    return DistributionMatching(schedule, weighting, int(generator_steps), gan_weight, discriminator_weight, low, high)


def _difference_loss(
    x0: Float[Array, "B ..."], real: Float[Array, "B ..."], fake: Float[Array, "B ..."]
) -> Float[Array, " B"]:
    """Returns a loss [B] whose gradient by `x0` is (fake - real) / mean |x0 - real|, over the number of its values.

    Args:
      x0: samples of the generator.
      real: estimate of x_0 by the teacher, from the noised samples.
      fake: estimate of x_0 by the denoiser of the generator's samples.

    Reference: Yin et al. 2024a, eq. 7 and 8.
    """

    def one(x0: Array, real: Array, fake: Array) -> Array:
        scale = jnp.mean(jnp.abs(x0 - real))
        difference = (fake - real) / jnp.maximum(scale, 1e-8)
        return 0.5 * jnp.mean((x0 - lax.stop_gradient(x0 - difference)) ** 2)

    return jax.vmap(one)(x0, real, fake)
