"""Straightness of trajectories."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import noise_schedules, time_grids
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.straightness import straightness

X = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def measure(schedule, denoiser, steps):
    levels = schedule(jnp.asarray(time_grids.trailing(steps, schedule), jnp.float32))
    x = (levels.alpha[0] + levels.sigma[0]) * X
    return jax.jit(lambda x: straightness(denoiser, x, levels, steps))(x)


@pytest.mark.parametrize("name", ["rectified_flow", "cosine", "edm"])
def test_straight_flows_have_deviation_zero(name):
    """All data are at one point, so every trajectory goes straight to it, on any schedule."""
    deviation, distance = measure(getattr(noise_schedules, name)(20), lambda x, now: Denoised(jnp.full_like(x, 0.3)), 5)
    np.testing.assert_allclose(deviation, 0.0, atol=1e-5)
    noisiest = getattr(noise_schedules, name)(20)(20.0)
    start = noisiest.sigma / (noisiest.alpha + noisiest.sigma)  # 80 / 81 for edm
    np.testing.assert_allclose(distance, np.sum((X - 0.3) ** 2, axis=1) / start**2, rtol=1e-3)


def test_a_gaussian_has_its_closed_form():
    """Data N(0, a^2): y = y_1 r(s) with r^2 = (1 - s)^2 a^2 + s^2, so r goes from a to 1."""
    a, steps = 0.25, 1000

    def denoiser(x, now):
        return Denoised(now.alpha * a**2 / (now.alpha**2 * a**2 + now.sigma**2) * x)

    deviation, distance = measure(noise_schedules.rectified_flow(steps), denoiser, steps)
    s = (np.arange(100_000) + 0.5) / 100_000
    slope = (s - (1 - s) * a**2) / np.sqrt((1 - s) ** 2 * a**2 + s**2)
    squares = np.sum(X**2, axis=1)
    np.testing.assert_allclose(deviation, squares * np.mean((slope - (1 - a)) ** 2), rtol=1e-2)
    np.testing.assert_allclose(distance, squares * (1 - a) ** 2, rtol=1e-2)
