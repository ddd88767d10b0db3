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
from tests.diffusion.test_samplers import FROM, MEAN, STD, TO, Angle, best, best_of_mixture

ORDERS = {"rk45": 5, "dpm_adaptive": 3}  # of the default options
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
    if name == "dpm_adaptive":
        traced = {"order": 3, "pcoeff": 0.0, "icoeff": 1.0, "dcoeff": 0.0, "eta": 0.0, "k_diffusion": False}
        options = {**traced, **options}  # for one compilation
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


@pytest.mark.parametrize(
    "name, stages, order, options",
    [("rk45", 6, 5, {}), ("dpm_adaptive", 3, 3, {}), ("dpm_adaptive", 2, 2, {"order": 2})],
)
def test_order_of_convergence_without_a_tolerance(name, stages, order, options):
    """Every step of the grid, but for the first ones, is then one step of the method."""
    results = [solve(name, steps=steps, rtol=1e9, **options) for steps in (20, 40)]
    errors = [np.abs(x - exact()).max() for x, _ in results]
    assert -0.5 < np.log2(errors[0] / errors[1]) - order < 1.2
    at_least = 40 * (1 + stages)
    assert (results[1][1].count >= at_least).all() and (results[1][1].count <= at_least + 2 * stages).all()


@pytest.mark.parametrize("name, options", [("rk45", {}), ("dpm_adaptive", {}), ("dpm_adaptive", {"eta": 1.0})])
def test_an_example_does_not_depend_on_its_batch(name, options):
    x, evaluations = solve(name, rtol=1e-4, **options)
    others = np.concatenate([X[:1], np.zeros((3, 2))])
    alone, evaluations_alone = solve(name, others, rtol=1e-4, **options)
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


@pytest.mark.slow
def test_noise_keeps_the_marginals_on_a_gaussian():
    """With independent noise, and with that of one path, whose samples converge with the tolerance."""
    schedule, count = Angle(), 2000

    @functools.partial(jax.jit, static_argnames="brownian")
    def run(rtol, brownian):
        sampler = samplers.dpm_adaptive(schedule=schedule, eta=1.0, rtol=rtol, atol=rtol / 5)
        keys, start = jax.random.split(jax.random.key(0), count), schedule(FROM)
        x = start.alpha * MEAN + jnp.hypot(start.alpha * STD, start.sigma) * jax.random.normal(keys[0], (count,))
        return sampling.run(keys, best, sampler, schedule(jnp.array([FROM, TO])), 1, x, brownian=brownian)

    end = schedule(TO)
    std = np.hypot(end.alpha * STD, end.sigma)
    distances = []  # between samples of two tolerances
    for brownian in (False, True):
        coarse, fine = run(0.02, brownian), run(0.002, brownian)
        np.testing.assert_allclose(fine.mean(), end.alpha * MEAN, atol=0.1 * std)
        np.testing.assert_allclose(fine.std(), std, rtol=0.06)
        distances.append(np.sqrt(np.mean((coarse - fine) ** 2)))
    assert distances[0] > 0.5 * std and distances[1] < 0.2 * std


def level_of(ratio):
    angle = np.arctan(ratio)
    return Noise(0.0, np.cos(angle), np.sin(angle))


def eps_at(x, noise):
    return (x - noise.alpha * best_of_mixture(x, noise, np)) / noise.sigma


def dpm_solver_12_and_23(order):
    """Returns the step of Lu et al. 2022 in half the log-SNR: (x, place, h) -> solutions of lower and higher order."""

    def level(half_log_snr):
        return level_of(np.exp(-half_log_snr))

    def step(x, place, h):
        now, next = level(place), level(place + h)
        eps = eps_at(x, now)

        def move(to, h):
            return to.alpha / now.alpha * x - to.sigma * np.expm1(h) * eps

        first_order = move(next, h)
        if order == 2:
            middle = level(place + h / 2)
            return first_order, first_order - next.sigma * np.expm1(h) * (eps_at(move(middle, h / 2), middle) - eps)
        thirds = [level(place + h / 3), level(place + 2 * h / 3)]
        d1 = eps_at(move(thirds[0], h / 3), thirds[0]) - eps
        u2 = move(thirds[1], 2 * h / 3) - thirds[1].sigma * 2 * (np.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1
        d2 = eps_at(u2, thirds[1]) - eps
        lower = first_order - next.sigma * 1.5 * np.expm1(h) * d1
        return lower, first_order - next.sigma * 1.5 * (np.expm1(h) / h - 1) * d2

    return step


def dormand_prince(x, place, h):
    """The step in minus the time u of the rectified flow, where x / (alpha + sigma) has the slope eps - x_0."""

    def scale(place):
        noise = level_of(-place / (1 + place))
        return noise, noise.alpha + noise.sigma

    def slope(y, place):
        noise, size = scale(place)
        x0 = best_of_mixture(size * y, noise, np)
        return x0 - (size * y - noise.alpha * x0) / noise.sigma  # by -u

    y, slopes = x / scale(place)[1], []
    for weights, node in zip([*RK45.A, RK45.B], [*RK45.C, 1.0], strict=True):
        inside = y + h * sum(w * d for w, d in zip(weights, slopes, strict=False))
        slopes.append(slope(inside, place + node * h))
    higher = inside
    lower = higher + h * sum(w * d for w, d in zip(RK45.E, slopes, strict=True))
    return scale(place + h)[1] * lower, scale(place + h)[1] * higher


HALF_LOG_SNRS = tuple(-np.log(np.tan(t * np.pi / 2)) for t in (FROM, TO))
FLOW_TIMES = tuple(np.tan(t * np.pi / 2) / (1 + np.tan(t * np.pi / 2)) for t in (FROM, TO))
PID = {"pcoeff": 0.2, "icoeff": 1.0, "dcoeff": 0.1}
STEPS = {  # ends, step, order of the estimated error, number of evaluations, options
    "rk45": (tuple(-u for u in FLOW_TIMES), dormand_prince, 5, 6, {}),
    "dpm_adaptive 2": (HALF_LOG_SNRS, dpm_solver_12_and_23(2), 2, 2, {"order": 2}),
    "dpm_adaptive 3": (HALF_LOG_SNRS, dpm_solver_12_and_23(3), 3, 3, {"order": 3}),
    "dpm_adaptive 3 PID": (HALF_LOG_SNRS, dpm_solver_12_and_23(3), 3, 3, PID),
    "dpm_adaptive 2 of k-diffusion": (HALF_LOG_SNRS, dpm_solver_12_and_23(2), 2, 2, {"order": 2, "k_diffusion": True}),
    "dpm_adaptive 3 of k-diffusion": (HALF_LOG_SNRS, dpm_solver_12_and_23(3), 3, 3, {"order": 3, "k_diffusion": True}),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_equal_numpy(name):
    """For one example, with our tolerance and step sizes, or those of k-diffusion."""
    (place, end), step, order, stages, options = STEPS[name]
    rtol, atol = (1e-6, 1e-7) if name == "rk45" else (0.05, 0.0078)
    x, previous, size, count, rejected = X[0], X[0], 0.05, 1, 0
    p, i, d = PID.values() if "pcoeff" in options else (0, 1, 0)
    errors = []  # of this attempt, and of the last two accepted steps
    while place < end:
        h = min(size, end - place)
        lower, higher = step(x, place, h)
        scale = np.minimum(abs(lower), abs(higher))
        if "k_diffusion" in options:
            scale = np.maximum(abs(lower), abs(previous))
        error = np.sqrt(np.mean(((higher - lower) / np.maximum(atol, rtol * scale)) ** 2))
        errors = [error, *(errors or [error, error, error])[1:]]
        powers = np.array([p + i + d, -p - 2 * d, d]) / order
        factor, is_accepted = np.clip(0.9 * np.prod(np.array(errors) ** -powers), 0.2, 2), error <= 1
        if "k_diffusion" in options:  # whose next size is not that of a step cut short
            h, factor = size, 1 + np.arctan((error + 1e-8) ** (-1 / order) - 1)
            is_accepted = factor >= 0.81
        if is_accepted:
            x, previous, place = higher, lower, min(place + size, end)
            errors = [error, error, errors[1]]
        size, count, rejected = h * factor, count + stages, rejected + (not is_accepted)
    assert rejected > 0
    found, evaluations = solve(name.split()[0], rtol=rtol, atol=atol, **options)
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
