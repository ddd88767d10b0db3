"""Methods of inverse problems on data whose posterior is known."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import (
    guided_steps,
    inverse_problems,
    measurements,
    noise_schedules,
    samplers,
    sampling,
    time_grids,
)
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import Noise
from diffjax.registry import choices

RNG = np.random.default_rng(6)
SCHEDULE = noise_schedules.cosine(1000)
METHODS = choices(inverse_problems)
# A Gaussian mixture in the plane, and one measurement of it.
WEIGHTS, VARIANCE = np.array([0.2, 0.5, 0.3]), 0.04
MEANS = np.array([[-0.6, 0.4], [0.5, 0.1], [0.1, -0.7]])
A, Y, STD = np.array([[1.0, 0.5]]), 0.6, 0.3


def mixture(x, noise, next=None):
    means, points = jnp.asarray(MEANS, jnp.float32)[None], x.reshape(len(x), 1, 2)
    total = noise.alpha**2 * VARIANCE + noise.sigma**2
    distance = jnp.sum((points - noise.alpha * means) ** 2, axis=2)
    share = jax.nn.softmax(jnp.log(jnp.asarray(WEIGHTS, jnp.float32))[None] - distance / (2 * total))
    each = means + noise.alpha * VARIANCE / total * (points - noise.alpha * means)
    return Denoised(jnp.sum(share[..., None] * each, axis=1).reshape(x.shape))


def posterior():
    """Returns the mean and the covariance of the mixture given the measurement."""
    variance = (A @ A.T)[0, 0] * VARIANCE + STD**2
    gain, differences = VARIANCE * A[0] / variance, Y - MEANS @ A[0]
    log_weights = np.log(WEIGHTS) - differences**2 / (2 * variance)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    means = MEANS + differences[:, None] * gain
    mean = weights @ means
    within = VARIANCE * (np.eye(2) - np.outer(gain, A[0]))
    return mean, within + (weights[:, None] * (means - mean)).T @ (means - mean)


def restored(method, denoiser, operator, y, std, *, count, steps=60, shape=(2, 1, 1)):
    """Returns samples [count, N] given a measurement."""
    measured = jnp.broadcast_to(jnp.asarray(y, jnp.float32), (count, *np.shape(y)))
    sampler = guided_steps.with_displacement(samplers.ancestral())
    levels = SCHEDULE(jnp.asarray(time_grids.trailing(steps, SCHEDULE), jnp.float32))
    denoise = METHODS[method](denoiser, operator, measured, std)
    run = jax.jit(lambda keys: sampling.sample(keys, denoise, sampler, levels, steps, shape=shape))
    return np.asarray(run(jax.random.split(jax.random.key(0), count))).reshape(count, -1)


def errors(x, mean, covariance):
    """Returns the error of the mean, and the relative error of the covariance."""
    return np.linalg.norm(x.mean(0) - mean), np.linalg.norm(np.cov(x.T) - covariance) / np.linalg.norm(covariance)


@pytest.mark.slow
def test_the_bias_on_a_mixture_falls_with_the_exactness_of_the_covariance():
    """The covariance of y given x_t is that of the denoiser for tmpd, of one Gaussian for pigdm, none for dps."""
    operator = measurements.matrix(array=jnp.asarray(A, jnp.float32))
    by_method = {name: errors(restored(name, mixture, operator, [Y], STD, count=600), *posterior()) for name in METHODS}
    for i in (0, 1):
        assert 2 * by_method["tmpd"][i] < 1.5 * by_method["pigdm"][i] < by_method["dps"][i], by_method
    assert by_method["tmpd"][0] < 0.1


def gaussian(x, noise, next=None):
    """The denoiser of N(0, I)."""
    return Denoised(noise.alpha / (noise.alpha**2 + noise.sigma**2) * x)


@pytest.mark.parametrize("method", ["pigdm", "tmpd"])
def test_samples_of_gaussian_data_have_the_posterior(method):
    """Both covariances are exact there. The rows of A are orthogonal, as tmpd has a diagonal."""
    rows, std = np.array([[1.0, 1, 0], [0.5, -0.5, 1]]), 0.5
    y = np.array([1.0, -0.5])
    gain = rows.T @ np.linalg.inv(rows @ rows.T + std**2 * np.eye(2))
    operator = measurements.matrix(array=jnp.asarray(rows, jnp.float32))
    x = restored(method, gaussian, operator, y, std, count=1500, shape=(3, 1, 1))
    mean_error, covariance_error = errors(x, gain @ y, np.eye(3) - gain @ rows)
    assert mean_error < 0.1 and covariance_error < 0.15, (mean_error, covariance_error)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.9, 0.43589), (1.0, 5.0), (0.0, 1.0)])
def test_pigdm_equals_its_formula(alpha, sigma):
    """Song et al. 2023: the gradient is (y - A x_0)^T (r^2 A A^T + std^2 I)^-1 A dx_0/dx."""
    rows, std, data_std, x = RNG.normal(size=(3, 8)), 0.2, 0.7, np.float32(RNG.normal(size=(5, 2, 2, 2)))
    y = RNG.normal(size=(5, 3))
    estimate = lambda x, noise: Denoised(jnp.tanh(0.5 * x), guidance_gradient=jnp.ones_like(x))  # noqa: E731
    operator = measurements.matrix(array=jnp.asarray(rows, jnp.float32))
    level = Noise(*(jnp.asarray(v, jnp.float32) for v in (500.0, alpha, sigma)))
    method = functools.partial(inverse_problems.pigdm, data_std=data_std)
    denoised = jax.jit(method(estimate, operator, jnp.asarray(y, jnp.float32), std))(jnp.asarray(x), level)
    flat = np.float64(x).reshape(5, 8)
    x0 = np.tanh(0.5 * flat)
    r2 = sigma**2 * data_std**2 / (sigma**2 + alpha**2 * data_std**2)
    inverse = np.linalg.inv(r2 * rows @ rows.T + std**2 * np.eye(3))
    expected = 1 + (y - x0 @ rows.T) @ inverse @ rows * 0.5 * (1 - x0**2)
    np.testing.assert_allclose(denoised.guidance_gradient.reshape(5, 8), expected, rtol=2e-3, atol=2e-3)


def test_dps_moves_x_along_the_gradient_of_the_distance():
    """Chung et al. 2023, algorithm 1, around a step of DDIM; compared with central differences in float64."""
    rows, y, x = RNG.normal(size=(3, 4)), RNG.normal(size=(5, 3)), RNG.normal(size=(5, 4))
    now, next = (Noise(*(jnp.asarray(v, jnp.float32) for v in level)) for level in ((500.0, 0.6, 0.8), (0.0, 1.0, 0.0)))
    operator = measurements.matrix(array=jnp.asarray(rows, jnp.float32))
    plain = lambda x, noise: Denoised(jnp.tanh(x))  # noqa: E731
    denoise = inverse_problems.dps(plain, operator, jnp.asarray(y, jnp.float32), 0.0, scale=0.7)
    sampler = guided_steps.with_displacement(samplers.ddim())
    images = jnp.asarray(x, jnp.float32).reshape(5, 2, 2, 1)
    moved, _ = jax.jit(lambda x: sampler.step(lambda *_: 0.0, denoise, (), x, now, next))(images)
    distance, h = lambda x: np.linalg.norm(y - np.tanh(x) @ rows.T, axis=1), 1e-5
    gradient = np.stack([(distance(x + h * e) - distance(x - h * e)) / (2 * h) for e in np.eye(4)], axis=1)
    np.testing.assert_allclose(moved.reshape(5, 4), np.tanh(x) - 0.7 * gradient, rtol=1e-4, atol=1e-4)


def test_a_step_with_a_loop_is_displaced_by_its_first_evaluation():
    """The trace is enough: the displacement of an evaluation within the loop of `restart` would leave it."""
    sampler = guided_steps.with_displacement(samplers.restart(schedule=SCHEDULE))
    levels, x = SCHEDULE(time_grids.trailing(3, SCHEDULE)), jnp.ones((2, 1))
    denoiser = lambda x, noise, next=None: Denoised(0.5 * x, displacement=0.1 * x)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 2)
    assert jax.eval_shape(lambda x: sampling.run(keys, denoiser, sampler, levels, 3, x), x).shape == x.shape
