"""Schedules against float64 NumPy written from the papers' formulas."""

import jax
import numpy as np
import pytest

from diffjax.choice import choices
from diffjax.diffusion import schedules
from diffjax.diffusion.noise import log_snr

ALL = sorted(choices(schedules))


def alpha_bar(name: str, timesteps: int) -> np.ndarray:
    """float64 [T + 1], alpha-bar at t = 0..T, by the plain product of the papers."""
    t = np.arange(1, timesteps + 1)
    if name == "linear":
        betas = (0.1 + (t - 1) / max(timesteps - 1, 1) * (20 - 0.1)) / timesteps
    elif name == "scaled_linear":
        betas = (np.sqrt(0.85) + (t - 1) / max(timesteps - 1, 1) * (np.sqrt(12) - np.sqrt(0.85))) ** 2 / timesteps
    else:
        f = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = 1 - f[1:] / f[:-1]
    return np.concatenate([[1.0], np.cumprod(1 - np.minimum(betas, 0.999))])


@pytest.mark.parametrize("timesteps", [1, 10, 250, 1000, 4000])
@pytest.mark.parametrize("name", ALL)
def test_discrete_levels(name, timesteps):
    noise = choices(schedules)[name](timesteps)(np.arange(timesteps + 1.0))
    expected = alpha_bar(name, timesteps)
    np.testing.assert_allclose(noise.alpha, np.sqrt(expected), rtol=1e-6)
    np.testing.assert_allclose(noise.sigma[1:], np.sqrt(1 - expected[1:]), rtol=1e-6)
    np.testing.assert_array_equal(noise.t, np.arange(timesteps + 1) - 1)


def test_linear_is_ddpms():
    """The figures of Ho et al. 2020: beta from 1e-4 to 0.02 and next to no signal at the end."""
    noise = schedules.linear(1000)(np.arange(1001.0))
    kept = np.asarray(noise.alpha, np.float64) ** 2
    np.testing.assert_allclose(1 - kept[1] / kept[0], 1e-4, rtol=1e-2)
    np.testing.assert_allclose(1 - kept[1000] / kept[999], 0.02, rtol=1e-4)
    np.testing.assert_allclose(kept[1000], 4.0358e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_continuous_is_the_limit_of_discrete(name):
    u = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    fine = alpha_bar(name, 100_000)[(u * 100_000).astype(int)]
    noise = choices(schedules)[name](1000, continuous=True)(u * 1000)
    np.testing.assert_allclose(np.asarray(noise.alpha) ** 2, fine, rtol=2e-3)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_every_schedule_is_a_variance_preserving_process(name, continuous):
    schedule = choices(schedules)[name](1000, continuous=continuous)
    noise = schedule(np.arange(1001.0))
    np.testing.assert_allclose(noise.alpha**2 + noise.sigma**2, 1.0, rtol=1e-6)
    assert (noise.alpha[0], noise.sigma[0]) == (1.0, 0.0)
    snr = np.asarray(log_snr(noise))
    assert np.isposinf(snr[0])
    assert (np.diff(snr[1:]) <= 0).all()
    assert np.isfinite(snr[1:]).all()
    assert (np.diff(snr[1:900]) < 0).all()


def test_a_continuous_schedule_is_accurate_near_the_image():
    """There sigma is a small difference of numbers near one, which float32 would lose."""
    u = 1e-5
    exact = np.sqrt(-np.expm1(-(0.1 * u + 19.9 * u**2 / 2)))
    np.testing.assert_allclose(schedules.linear(1000, continuous=True)(u * 1000).sigma, exact, rtol=1e-5)


def test_per_example_times_are_what_scalars_give():
    schedule = schedules.cosine(100)
    t = np.array([1.0, 50.0, 100.0])
    whole = schedule(t)
    for i, time in enumerate(t):
        jax.tree.map(lambda leaf, one, i=i: np.testing.assert_array_equal(leaf[i], one), whole, schedule(time))
