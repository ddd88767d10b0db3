"""Samplers with adaptive step sizes: tolerance, order, limit, and independence of the batch."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy.integrate import RK45, solve_ivp

from diffjax.diffusion import noise_schedules, samplers, sampling
from diffjax.diffusion.denoiser import Denoised, from_network
from diffjax.diffusion.guidance import autoguidance, classifier_free, perturbed, with_shift
from diffjax.diffusion.inverse_problems import pigdm, tmpd
from diffjax.diffusion.noise import Noise
from diffjax.diffusion.parameterizations import v
from diffjax.diffusion.samplers import adaptive
from tests.diffusion.test_samplers import FROM, TO, Angle, best_of_mixture

ORDERS = {"rk45": 5, "dpm_adaptive": 3}
X = np.linspace(-2, 2, 8).reshape(4, 2)


@functools.cache
def program(name):
    """Returns the compiled sampler on a mixture of Gaussians in float64: (x, evaluations) of x at the first level."""

    @jax.jit
    def run(x, levels, steps, options):
        def denoiser(x, noise):
            with_components = [jnp.expand_dims(leaf, -1) if leaf.ndim else leaf for leaf in noise]
            return Denoised(best_of_mixture(x, Noise(*with_components)))

        sampler = getattr(samplers, name)(schedule=Angle(), **options)
        keys, reports = jax.random.split(jax.random.key(0), len(x)), []
        x = sampling.run(keys, denoiser, sampler, levels, steps, x, report=reports.append)
        return x, *reports

    return run


def solve(name, x=X, steps=1, end=TO, **options):
    options = {"atol": options["rtol"] / 5, "max_evaluations": 10_000, **options}
    with jax.enable_x64(True):
        levels = Angle()(jnp.pad(jnp.linspace(FROM, end, steps + 1), (0, 40 - steps), constant_values=end))
        return jax.tree.map(np.asarray, program(name)(x, levels, steps, options))


@functools.cache
def exact():
    """SciPy's solution of dx / d angle = alpha eps - sigma x_0 [4, 2]."""

    def slope(angle, x):
        noise = Noise(0.0, np.cos(angle), np.sin(angle))
        x0 = best_of_mixture(x, noise, np)
        return noise.alpha * (x - noise.alpha * x0) / noise.sigma - noise.sigma * x0

    ends = FROM * np.pi / 2, TO * np.pi / 2
    return solve_ivp(slope, ends, X.ravel(), rtol=1e-12, atol=1e-13, method="DOP853").y[:, -1].reshape(X.shape)


def test_the_coefficients_are_those_of_dormand_and_prince():
    np.testing.assert_allclose(adaptive._STAGES[:6, :5], RK45.A, rtol=1e-15)
    np.testing.assert_allclose(adaptive._STAGES[6, :6], RK45.B, rtol=1e-15)
    np.testing.assert_allclose(adaptive._FOURTH_ORDER - adaptive._STAGES[6], RK45.E, atol=1e-15)


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_follows_the_tolerance(name):
    errors, counts = [], []
    for rtol in (1e-2, 1e-4, 1e-6):
        x, evaluations = solve(name, rtol=rtol)
        errors.append(np.abs(x - exact()).max())
        counts.append(evaluations.count.mean())
        assert errors[-1] < 10 * rtol and not evaluations.is_limited.any()
    assert errors[0] > 100 * errors[2] and errors[1] > errors[2]
    assert counts[0] <= counts[1] < counts[2]


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence_without_a_tolerance(name):
    """Every step of the grid, but for the first ones, is then one step of the method."""
    results = [solve(name, steps=steps, rtol=1e9) for steps in (20, 40)]
    errors = [np.abs(x - exact()).max() for x, _ in results]
    assert -0.5 < np.log2(errors[0] / errors[1]) - ORDERS[name] < 1.2
    stages = {"rk45": 6, "dpm_adaptive": 3}[name]
    at_least = 40 * (1 + stages)
    assert (results[1][1].count >= at_least).all() and (results[1][1].count <= at_least + 2 * stages).all()


@pytest.mark.parametrize("name", ORDERS)
def test_an_example_does_not_depend_on_its_batch(name):
    x, evaluations = solve(name, rtol=1e-4)
    others = np.concatenate([X[:1], np.zeros((3, 2))])
    alone, evaluations_alone = solve(name, others, rtol=1e-4)
    np.testing.assert_array_equal(alone[0], x[0])
    assert evaluations_alone.count[0] == evaluations.count[0]


@pytest.mark.parametrize("name", ORDERS)
def test_the_limit_of_evaluations_ends_with_a_ddim_step(name):
    x, evaluations = solve(name, rtol=1e-6, max_evaluations=1)
    assert evaluations.is_limited.all() and (evaluations.count == 1).all()
    start, end = Angle()(FROM), Angle()(TO)
    x0 = best_of_mixture(X, start, np)
    ddim = end.alpha * x0 + end.sigma * (X - start.alpha * x0) / start.sigma
    np.testing.assert_allclose(x, ddim, rtol=1e-5)


def test_dpm_adaptive_is_the_algorithm_of_its_paper():
    """In NumPy, for one example: Lu et al. 2022, DPM-Solver-23 with its step sizes in half the log-SNR."""
    rtol, atol = 0.05, 0.0078

    def level(half_log_snr):
        angle = np.arctan(np.exp(-half_log_snr))
        return Noise(0.0, np.cos(angle), np.sin(angle))

    def eps_at(x, half_log_snr):
        noise = level(half_log_snr)
        return (x - noise.alpha * best_of_mixture(x, noise, np)) / noise.sigma

    start, end = (-np.log(np.tan(t * np.pi / 2)) for t in (FROM, TO))
    x, place, h, count = X[0], start, 0.05, 1
    while place < end:
        h = min(h, end - place)
        now, next, eps = level(place), level(place + h), eps_at(x, place)
        thirds = [level(place + h / 3), level(place + 2 * h / 3)]
        u1 = thirds[0].alpha / now.alpha * x - thirds[0].sigma * np.expm1(h / 3) * eps
        d1 = eps_at(u1, place + h / 3) - eps
        second = thirds[1].sigma * 2 * (np.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1
        u2 = thirds[1].alpha / now.alpha * x - thirds[1].sigma * np.expm1(2 * h / 3) * eps - second
        d2 = eps_at(u2, place + 2 * h / 3) - eps
        first_order = next.alpha / now.alpha * x - next.sigma * np.expm1(h) * eps
        lower = first_order - next.sigma * 1.5 * np.expm1(h) * d1
        higher = first_order - next.sigma * 1.5 * (np.expm1(h) / h - 1) * d2
        error = np.sqrt(np.mean(((higher - lower) / np.maximum(atol, rtol * np.minimum(abs(lower), abs(higher)))) ** 2))
        if error <= 1:
            x, place = higher, end if place + h >= end else place + h
        h, count = h * np.clip(0.9 * error ** (-1 / 3), 0.2, 2), count + 3
    found, evaluations = solve("dpm_adaptive", rtol=rtol, atol=atol)
    np.testing.assert_allclose(found[0], x, rtol=1e-6)
    assert evaluations.count[0] == count


def test_a_denoiser_has_a_level_per_example():
    """With guidance in an interval that only some of the levels are in."""
    schedule, x = noise_schedules.cosine(100), np.float32(np.linspace(-1, 1, 12).reshape(3, 2, 2, 1))
    network = lambda shift: from_network(lambda x, t: jnp.tanh(x + shift * t[:, None, None, None] / 50), v)  # noqa: E731

    @jax.jit
    def denoise(x, noise):
        interval = (0.3, 3.0)
        denoiser = perturbed(network(0.1), network(0.5), 2.0, interval=interval)
        guided = classifier_free(denoiser, network(0.2), lambda noise: 1 + 4 * noise.t / 100, interval=interval)
        guided = autoguidance(with_shift(guided), network(0.3), 1.5, interval=interval)
        operator, y = lambda image: image[:1, :, 0], jnp.ones((len(x), 1, 2))
        return pigdm(tmpd(guided, operator, y, 0.1), operator, y, 0.1)(x, noise)

    times = np.float32([10.0, 50.0, 90.0])
    found = denoise(x, jax.tree.map(lambda leaf: leaf.reshape(3, 1, 1, 1), schedule(times)))
    for i, t in enumerate(times):
        expected = denoise(x[i : i + 1], schedule(t))
        for name in ("x0", "guidance_gradient"):
            np.testing.assert_allclose(getattr(found, name)[i], getattr(expected, name)[0], rtol=1e-4, atol=1e-5)
