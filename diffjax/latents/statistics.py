"""How large latents are: running moments, which a codec takes its scale from."""

from collections.abc import Mapping

from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.typing import Latents, Moment

Statistics = Mapping[str, Array]  # means of the latents and of their squares
_DECAY = 0.99


def init() -> Statistics:
    """Those of latents of unit variance."""
    return {"mean": jnp.zeros(()), "square": jnp.ones(())}


def moved(before: Statistics, z: Latents, moment: Moment) -> Statistics:
    """Moved towards those of a batch; from the first step on, what was there at first counts for nothing."""
    decay, z = jnp.minimum(_DECAY, moment.step / (10.0 + moment.step)), lax.stop_gradient(z)
    batch = {"mean": z.mean(), "square": (z**2).mean()}
    return {name: decay * before[name] + (1 - decay) * value for name, value in batch.items()}


def scale(seen: Statistics) -> Float[Array, ""]:
    """What gives latents unit variance: latent diffusion (Rombach et al. 2022), app. G."""
    return 1.0 / jnp.sqrt(jnp.maximum(seen["square"] - seen["mean"] ** 2, 1e-12))
