"""The one loop that drives every sampler over every grid."""

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float, Int, Key

from diffjax.diffusion.denoiser import Denoiser
from diffjax.diffusion.noise import Noise
from diffjax.diffusion.samplers import Sampler
from diffjax.diffusion.schedules import Schedule


def lay(schedule: Schedule, times: Int[np.ndarray, "n+1"], capacity: int | None = None) -> Noise:
    """The levels at a grid's times, leaves [capacity + 1]: padded with the clean level to a common length."""
    padding = max(0, (capacity or 0) + 1 - len(times))
    return schedule(jnp.asarray(np.pad(times, (0, padding)), jnp.float32))


def sample(
    keys: Key[Array, "B"], denoiser: Denoiser, sampler: Sampler, levels: Noise, steps: Int[Array, ""], *, shape
) -> Float[Array, "B ..."]:
    """Draws a batch: from pure noise down `levels` (leaves [N + 1], N >= steps) in `steps` steps.

    `steps` may be traced, so grids padded to one length share one compilation. Example i depends on `keys[i]` alone;
    its initial noise does not depend on the grid or the sampler. Every key is consumed once.

    Args:
      shape: shape of one example, for instance (H, W, C).
    """
    initial_key, step_key = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    start = jax.tree.map(lambda leaf: leaf[0], levels)
    # x_T of data with unit variance: N(0, I) for a variance-preserving process, sigma_T times it for an exploding one.
    scale = jnp.sqrt(start.alpha**2 + start.sigma**2)
    x = scale * jax.vmap(lambda key: jax.random.normal(key, shape))(initial_key)

    def body(i, state):
        x, carry = state
        now, next = jax.tree.map(lambda leaf: leaf[i], levels), jax.tree.map(lambda leaf: leaf[i + 1], levels)
        return sampler.step(jax.vmap(jax.random.fold_in, (0, None))(step_key, i), denoiser, carry, x, now, next)

    return lax.fori_loop(0, steps, body, (x, sampler.init(x)))[0]
