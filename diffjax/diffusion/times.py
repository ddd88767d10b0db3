"""How training draws its times. A public function of this file is a choice a config can name."""

import jax
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float, Key

from diffjax.diffusion.schedules import Schedule


def uniform(key: Key[Array, ""], schedule: Schedule) -> Float[Array, ""]:
    """One time, uniform over {1, ..., T}, or over (0, T] where the schedule is continuous (consumes `key`)."""
    if schedule.continuous:
        return schedule.timesteps * (1.0 - jax.random.uniform(key))
    return jax.random.randint(key, (), 1, schedule.timesteps + 1).astype(jnp.float32)
