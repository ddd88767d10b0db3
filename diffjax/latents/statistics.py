"""Running moments of latents, from which a codec takes its scale."""

from collections.abc import Mapping

from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.typing import Latents, StepContext

Statistics = Mapping[str, Array]  # scalars "mean" and "square", running means of the latents and of their squares
_DECAY = 0.99


def init() -> Statistics:
    """Returns the statistics of latents with zero mean and unit variance."""
    return {"mean": jnp.zeros(()), "square": jnp.ones(())}


def ema_update(before: Statistics, z: Latents, context: StepContext) -> Statistics:
    """Moves the statistics towards those of a batch; the first step replaces the initial values."""
    decay, z = jnp.minimum(_DECAY, context.step / (10.0 + context.step)), lax.stop_gradient(z)
    batch = {"mean": z.mean(), "square": (z**2).mean()}
    return {name: decay * before[name] + (1 - decay) * value for name, value in batch.items()}


def scale(statistics: Statistics) -> Float[Array, ""]:
    """Returns the factor that gives latents unit variance.

    Reference: latent diffusion (Rombach et al. 2022), app. G.
    """
    return 1.0 / jnp.sqrt(jnp.maximum(statistics["square"] - statistics["mean"] ** 2, 1e-12))
