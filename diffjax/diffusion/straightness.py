"""Straightness of the trajectories of the probability-flow ODE, from noise to data."""

import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float, Int

from diffjax.diffusion.denoiser import Denoiser
from diffjax.diffusion.noise import Noise, ddim_step, eps_from_x0, flow_time
from diffjax.diffusion.sampling import at


def straightness(
    denoiser: Denoiser, x: Float[Array, "B ..."], levels: Noise, steps: Int[Array, ""] | int
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Computes how far the velocity of trajectories is from that of straight lines between their ends.

    The trajectories are those of a rectified flow, y = x_t / (alpha + sigma) at the time s = sigma / (alpha + sigma),
    whatever the schedule. DDIM's steps are Euler's steps of dy / ds = eps - x_0, so the integral is exact for them.

    Args:
      denoiser: the model.
      x: initial x_T [B, ...], at levels[0].
      levels: noise levels of the grid, leaves [N + 1] with N >= steps.
      steps: number of steps; may be traced.

    Returns:
      For each example the mean over s of |dy / ds - v|^2, where v is the mean velocity, and |v|^2. Both are sums over
      the values of an example. The straightness is the first; it is 0 for straight lines at constant speed.

    Reference: Liu et al. 2023, "Flow straight and fast" (rectified flow), sec. 2.2.
    """

    def sums(values):
        return jax.vmap(jnp.sum)(values)

    def body(i, state):
        x, total, mean, deviation = state
        now, next = at(levels, i), at(levels, i + 1)
        x0 = denoiser(x, now).x0
        velocity, weight = eps_from_x0(x, x0, now) - x0, flow_time(now) - flow_time(next)
        total += weight
        change = velocity - mean
        new_mean = mean + weight / total * change
        deviation += weight * sums(change * (velocity - new_mean))  # West 1979: the variance in one pass
        return ddim_step(x, x0, now, next), total, new_mean, deviation

    start = x, jnp.zeros(()), jnp.zeros_like(x), jnp.zeros(len(x))
    _, total, mean, deviation = lax.fori_loop(0, steps, body, start)
    return deviation / total, sums(mean**2)
