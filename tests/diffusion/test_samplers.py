"""Samplers on data with a known optimal denoiser: order of convergence and distribution of the samples."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp
from scipy import stats
from scipy.integrate import solve_ivp

from diffjax.diffusion import noise_schedules, samplers, sampling, time_grids, variance
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import Noise, posterior_mean, posterior_variance
from diffjax.diffusion.samplers import runge_kutta
from diffjax.registry import choices
from tests.diffusion.closed_forms import discrete

# Constructor, and order of convergence: in x, or in mean and variance for samplers that add noise.
SAMPLERS = {
    "ancestral": (lambda schedule, steps: samplers.ancestral(), 1),
    "ancestral, large": (lambda schedule, steps: samplers.ancestral(variance=variance.fixed_large), 1),
    "ddim": (lambda schedule, steps: samplers.ddim(), 1),
    "flow_map": (lambda schedule, steps: samplers.flow_map(), 1),  # of a denoiser that ignores the next level
    "ddim 0.5": (lambda schedule, steps: samplers.ddim(eta=0.5), 1),
    "ddim 1": (lambda schedule, steps: samplers.ddim(eta=1.0), 1),
    "ddim hat": (lambda schedule, steps: samplers.ddim(eta=1.0, sigma_hat=True), 1),
    "euler": (lambda schedule, steps: samplers.euler(), 1),
    "euler_ancestral": (lambda schedule, steps: samplers.euler_ancestral(), 1),
    "euler_maruyama": (lambda schedule, steps: samplers.euler_maruyama(constant=0.3, sbdm=0.2), 1),
    "heun": (lambda schedule, steps: samplers.heun(), 2),
    "edm": (lambda schedule, steps: samplers.edm(schedule=schedule, steps=steps, churn=2.0), 2),
    "plms": (lambda schedule, steps: samplers.plms(), 2),  # Liu et al. 2022, property 3.3
    "pndm": (lambda schedule, steps: samplers.pndm(schedule=schedule), 2),
    "dpmpp_2m": (lambda schedule, steps: samplers.dpmpp_2m(), 2),
    "dpmpp_2m_sde": (lambda schedule, steps: samplers.dpmpp_2m_sde(), 2),
    "unipc": (lambda schedule, steps: samplers.unipc(), 3),  # its corrector adds one: Zhao et al. 2023, theorem 3.1
    "unipc 1": (lambda schedule, steps: samplers.unipc(order=1, bh1=True), 2),
    "unipc 3": (lambda schedule, steps: samplers.unipc(order=3), 4),
    "sa_solver": (lambda schedule, steps: samplers.sa_solver(), 2),
    "sa_solver 3": (lambda schedule, steps: samplers.sa_solver(predictor_order=3, corrector_order=4, tau=0.0), 4),
    "heun velocity": (lambda schedule, steps: samplers.heun(velocity=True), 2),
    "restart": (lambda schedule, steps: samplers.restart(schedule=schedule, repeats=0), 2),  # of the steps between
    "dpm_solver": (lambda schedule, steps: samplers.dpm_solver(schedule=schedule), 2),
    "dpm_solver 3": (lambda schedule, steps: samplers.dpm_solver(schedule=schedule, order=3), 3),
    "dpm_solver data 3": (lambda schedule, steps: samplers.dpm_solver(schedule=schedule, order=3, data=True), 3),
    "dpm2": (lambda schedule, steps: samplers.dpm2(schedule=schedule), 2),
    "dpm2_ancestral": (lambda schedule, steps: samplers.dpm2_ancestral(schedule=schedule), 2),
    "dpmpp_2s_ancestral": (lambda schedule, steps: samplers.dpmpp_2s_ancestral(schedule=schedule), 2),
    "dpmpp_2s_ancestral 0": (lambda schedule, steps: samplers.dpmpp_2s_ancestral(schedule=schedule, eta=0.0), 2),
    "dpmpp_sde": (lambda schedule, steps: samplers.dpmpp_sde(schedule=schedule), 2),
    "dpmpp_2m_sde heun": (lambda schedule, steps: samplers.dpmpp_2m_sde(heun=True), 2),
    "dpmpp_3m_sde": (lambda schedule, steps: samplers.dpmpp_3m_sde(), 2),
    # Their first steps are of lower order, which limits the order of the whole.
    "dpmpp_3m_sde 0": (lambda schedule, steps: samplers.dpmpp_3m_sde(eta=0.0), 2),
    "ipndm": (lambda schedule, steps: samplers.ipndm(), 2),
    "lms": (lambda schedule, steps: samplers.lms(), 2),
    "deis": (lambda schedule, steps: samplers.deis(schedule=schedule), 2),
    "deis log_rho": (lambda schedule, steps: samplers.deis(schedule=schedule, log_rho=True), 2),
    "dpm_solver_multistep": (lambda schedule, steps: samplers.dpm_solver_multistep(), 2),
    "dpm_solver_multistep 3": (lambda schedule, steps: samplers.dpm_solver_multistep(order=3), 2),
}
STOCHASTIC = [
    *("ancestral", "ancestral, large", "ddim 0.5", "ddim 1", "ddim hat", "euler_ancestral", "euler_maruyama", "edm"),
    *("dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde heun", "dpmpp_3m_sde"),
    "sa_solver",
]
DETERMINISTIC = sorted(SAMPLERS.keys() - set(STOCHASTIC))
OTHER_NAMES = {
    "flow_map",
    "dpm2",
    "euler",
    "euler_ancestral",
    "ddim 1",
    "ddim hat",
    "ancestral, large",
}  # of other samplers in the table

# Their programs of few steps are tested with -m slow: others have the same guards.
VARIANTS = {
    *("dpm2", "dpm2_ancestral", "dpm_solver 3", "dpm_solver data 3", "dpmpp_2s_ancestral 0", "dpm_solver_multistep 3"),
    *("restart", "dpmpp_2m_sde heun", "dpmpp_3m_sde 0", "deis log_rho", "ipndm", "unipc 1", "unipc 3", "heun velocity"),
    *("sa_solver", "sa_solver 3"),
}

MEAN, STD = 0.7, 0.3  # of Gaussian data
MEANS, STDS, WEIGHTS = np.array([-1.0, 0.7]), np.array([0.3, 0.4]), np.array([0.4, 0.6])  # of a mixture
SAMPLES = 20_000


def of_few_steps(names):
    """Returns parameters of tests of few steps."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in sorted(names)]


def test_the_table_is_complete():
    """All but those of consistency models, which do not converge to an ODE of the denoiser, and of test_adaptive.py."""
    others = {"consistency", "lcm", "tcd", "dpm_adaptive", "rk45"}
    assert {name.replace(",", " ").split()[0] for name in SAMPLERS} | others == set(choices(samplers))


@pytest.mark.parametrize("brownian", [False, True])
def test_restart_contracts_an_error_of_the_start(brownian):
    """Each repeat shrinks an error in the mean as the ODE does on the way back, and the deviation stays.

    From sigma / alpha = R to r the ODE of a Gaussian of deviation s shrinks it by sqrt((r^2 + s^2) / (R^2 + s^2)).
    """
    schedule = noise_schedules.cosine(1000, continuous=True)
    levels = schedule(jnp.asarray(time_grids.trailing(30, schedule), jnp.float32))
    keys = jax.random.split(jax.random.key(0), 4000)
    x = 2.0 + jax.random.normal(jax.random.key(1), (4000,))

    @jax.jit
    def run(repeats):
        sampler = samplers.restart(schedule=schedule, low=0.3, high=2.0, repeats=repeats)
        return sampling.run(keys, best, sampler, levels, 30, x, brownian=brownian)

    errors = [float(run(repeats).mean()) - MEAN for repeats in (0, 1, 3)]
    ratios = np.asarray(levels.sigma / levels.alpha)
    contraction = np.hypot(ratios[ratios <= 0.3].max(), STD) / np.hypot(2.0, STD)
    np.testing.assert_allclose(errors[1], contraction * errors[0], atol=0.03)
    assert errors[0] > 0.4 and abs(errors[2]) < 0.03
    np.testing.assert_allclose(run(3).std(), STD, rtol=0.05)
    np.testing.assert_allclose(run(0), sampling.run(keys, best, samplers.heun(), levels, 30, x), atol=1e-4)


def test_restart_in_one_step_is_heun():
    """No level of the grid is below t_max, whether the first one has signal or not."""
    schedules = [getattr(noise_schedules, name)(20) for name in ("rectified_flow", "edm", "linear")]
    tables = [jnp.stack([getattr(schedule, kind) for schedule in schedules]) for kind in ("alphas", "sigmas")]
    keys, eps = jax.random.split(jax.random.key(0), 50), jax.random.normal(jax.random.key(1), (50,))

    @jax.jit
    @jax.vmap
    def run(alphas, sigmas):
        levels = Noise(jnp.array([20.0, 0.0]), alphas[jnp.array([20, 0])], sigmas[jnp.array([20, 0])])
        restart, x = samplers.restart(schedule=discrete(alphas, sigmas)), levels.sigma[0] * eps
        return [sampling.run(keys, best, sampler, levels, 1, x) for sampler in (restart, samplers.heun())]

    np.testing.assert_allclose(*run(*tables), rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "edm"])
def test_churn_beyond_the_last_level_keeps_the_kind_of_process(name):
    """alpha^2 + sigma^2 = 1, or alpha = 1 where noise explodes; at levels of the process `beyond` changes nothing."""
    schedule = getattr(noise_schedules, name)(1000)
    last, inside = schedule(1000.0), schedule(500.0)
    more = runge_kutta._noisier(schedule, last, 0.4, True)
    np.testing.assert_allclose(more.sigma / more.alpha, 1.4 * last.sigma / last.alpha, rtol=1e-6)
    np.testing.assert_allclose(more.alpha if name == "edm" else np.hypot(more.alpha, more.sigma), 1.0, rtol=1e-6)
    np.testing.assert_allclose(runge_kutta._noisier(schedule, last, 0.4, False), last, rtol=1e-5)
    found = [runge_kutta._noisier(schedule, inside, 0.01, beyond) for beyond in (False, True)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0].sigma / found[0].alpha, 1.01 * inside.sigma / inside.alpha, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("continuous", [False, True])
def test_tcd_is_between_ddim_and_lcm(continuous):
    """In mean and variance, and without noise in each sample."""
    schedule, size = noise_schedules.cosine(100, continuous=continuous), (SAMPLES,)
    levels, keys = schedule(jnp.array([90.0, 40.0, 0.0])), jax.random.split(jax.random.key(0), SAMPLES)
    x = jax.random.normal(jax.random.key(1), size)

    @jax.jit
    def run(gamma):
        return sampling.run(keys, best, samplers.tcd(schedule=schedule, gamma=gamma), levels, 1, x)

    ddim, lcm = (sampling.run(keys, best, sampler, levels, 1, x) for sampler in (samplers.ddim(), samplers.lcm()))
    np.testing.assert_allclose(run(0.0), ddim, atol=1e-5)
    np.testing.assert_allclose(np.std(run(1.0) - lcm), 0.0, atol=0.03)
    now, next = sampling.at(levels, 0), sampling.at(levels, 1)
    level = schedule(20.0)
    x0 = best(x, now).x0
    mean = next.alpha * x0 + next.alpha / level.alpha * level.sigma * (x - now.alpha * x0) / now.sigma
    noise = np.sqrt(next.sigma**2 - (next.alpha / level.alpha * level.sigma) ** 2)
    np.testing.assert_allclose(np.std(run(0.5) - mean), noise, rtol=0.02)


@pytest.mark.slow
def test_a_flow_map_reaches_the_end_of_the_trajectory_in_any_number_of_steps():
    """On a Gaussian, whose flow map is affine; the denoiser is given the next level."""
    schedule = noise_schedules.cosine(100)

    def denoiser(x, now, next):
        std = [jnp.sqrt((level.alpha * STD) ** 2 + level.sigma**2) for level in (now, next)]
        end = next.alpha * MEAN + std[1] / std[0] * (x - now.alpha * MEAN)
        ratio = next.sigma / now.sigma
        return Denoised((end - ratio * x) / (next.alpha - ratio * now.alpha))

    x = np.linspace(-2, 2, 5, dtype=np.float32)[:, None]
    keys = jax.random.split(jax.random.key(0), 5)
    first = schedule(100.0)
    expected = MEAN + STD / np.hypot(first.alpha * STD, first.sigma) * (x - first.alpha * MEAN)
    for steps in (1, 2, 7):
        levels = schedule(time_grids.trailing(steps, schedule))
        ends = sampling.run(keys, denoiser, samplers.flow_map(), levels, steps, x)
        np.testing.assert_allclose(ends, expected, atol=2e-4)


def best(x, noise, next=None):
    """E[x_0 | x_t] of the Gaussian, by Bayes' rule."""
    gain = noise.alpha * STD**2 / (noise.alpha**2 * STD**2 + noise.sigma**2)
    return Denoised(MEAN + gain * (x - noise.alpha * MEAN))


def best_of_mixture(x, noise, xp=jnp):
    """E[x_0 | x_t] of the mixture, x [...]."""
    means, stds, weights = (v.reshape((1,) * x.ndim + (-1,)) for v in (MEANS, STDS, WEIGHTS))
    off = x[..., None] - noise.alpha * means
    spread = (noise.alpha * stds) ** 2 + noise.sigma**2
    log_weight = xp.log(weights) - xp.log(spread) / 2 - off**2 / (2 * spread)
    weight = xp.exp(log_weight - log_weight.max(-1, keepdims=True))
    estimates = means + noise.alpha * stds**2 / spread * off
    return (weight * estimates).sum(-1) / weight.sum(-1)


class Angle:
    """alpha = cos, sigma = sin of the angle t pi / 2: a schedule in float64."""

    timesteps, first = 1, 1e-3

    def __call__(self, t):
        angle = jnp.asarray(t) * jnp.pi / 2
        return Noise(jnp.asarray(t), jnp.cos(angle), jnp.sin(angle))

    def time_at(self, log_snr):
        return jnp.arctan(jnp.exp(-log_snr / 2)) * 2 / jnp.pi


FROM, TO = 0.9, 0.1  # between them nothing is singular


STEP_COUNTS = (80, 160)


def measured_order(error):
    errors = np.array([error(n) for n in STEP_COUNTS])
    return np.log2(errors[0] / errors[1])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DETERMINISTIC) - OTHER_NAMES))
def test_order_of_convergence_on_the_ode(name, float64):
    """On a mixture of Gaussians, against SciPy's solution of dx / d angle = alpha eps - sigma x_0."""

    def slope(angle, x):
        noise = Noise(0.0, np.cos(angle), np.sin(angle))
        x0 = best_of_mixture(x, noise, np)
        return noise.alpha * (x - noise.alpha * x0) / noise.sigma - noise.sigma * x0

    start = np.linspace(-2, 2, 9)
    ends = FROM * np.pi / 2, TO * np.pi / 2
    exact = solve_ivp(slope, ends, start, rtol=1e-11, atol=1e-12, method="DOP853").y[:, -1]
    keys = jax.random.split(jax.random.key(0), 9)

    @jax.jit
    def solve(levels, n):
        denoiser = lambda x, noise, next=None: Denoised(best_of_mixture(x, noise))  # noqa: E731
        return sampling.run(keys, denoiser, SAMPLERS[name][0](Angle(), n), levels, n, start)

    def error(n):
        levels = Angle()(jnp.pad(jnp.linspace(FROM, TO, n + 1), (0, 160 - n), constant_values=TO))
        return np.abs(solve(levels, n) - exact).max()

    assert error(160) < 6e-3
    assert -0.2 < measured_order(error) - SAMPLERS[name][1] < 0.3


@pytest.mark.parametrize("name", sorted(set(STOCHASTIC) - OTHER_NAMES))
def test_order_of_convergence_in_mean_and_variance(name, float64):
    """On a Gaussian every step is affine in x and the noises: one run on a basis of them gives both moments exactly."""
    size = max(STEP_COUNTS)

    @jax.jit
    def affine(levels, n):
        return basis_run(SAMPLERS[name][0](Angle(), n), best, levels, n)

    def error(n):
        levels = Angle()(jnp.pad(jnp.linspace(FROM, TO, n + 1), (0, size - n), constant_values=TO))
        offset, by_x, *by_noise = np.asarray(affine(levels, n))
        start, end = (jax.tree.map(float, Angle()(t)) for t in (FROM, TO))
        mean = (by_x - offset) * start.alpha * MEAN + offset
        var = (by_x - offset) ** 2 * (start.alpha**2 * STD**2 + start.sigma**2)
        var += np.sum((np.array(by_noise[: PARTS * n]) - offset) ** 2)
        return max(abs(mean - end.alpha * MEAN), abs(var - end.alpha**2 * STD**2 - end.sigma**2))

    assert -0.2 < measured_order(error) - SAMPLERS[name][1] < 0.5


PARTS = 2  # noises of a step, at most


def basis_run(sampler, denoiser, levels, n):
    """Returns x after n steps [2 + 2 N] from x = 0, from x = 1, and from x = 0 with one of the noises each."""
    size = len(levels.t) - 1
    x = jnp.zeros(2 + PARTS * size, levels.alpha.dtype).at[1].set(1.0)

    def body(i, state):
        noise = lambda start, end, part=0, repeat=0: jnp.zeros_like(x).at[2 + PARTS * i + part].set(1.0)  # noqa: E731
        return sampler.step(noise, denoiser, state[1], state[0], sampling.at(levels, i), sampling.at(levels, i + 1))

    return lax.fori_loop(0, n, body, (x, sampler.init(x)))[0]


# Options that are traced, so that their values share a program: (sampler, option).
TRACED = {"ddim": "eta", "edm": "churn", "dpmpp_2m_sde": "eta"}


@functools.cache
def mixture_program(name):
    """Returns (program that samples the mixture, its traces): inputs are padded levels, steps, value of the option."""
    schedule, traces = noise_schedules.cosine(1000), []

    @jax.jit
    def program(levels, steps, value):
        traces.append(1)
        options = {"schedule": schedule} if name in ("edm", "pndm", "restart") else {}
        options |= {"steps": steps} if name == "edm" else {}
        options |= {TRACED[name]: value} if name in TRACED else {}
        denoiser = lambda x, noise, next=None: Denoised(best_of_mixture(x, noise))  # noqa: E731
        keys = jax.random.split(jax.random.key(1), 10_000)
        return sampling.sample(keys, denoiser, choices(samplers)[name](**options), levels, steps, shape=())

    def run(steps, value=0.0, padding=0.0):
        levels = schedule(np.pad(time_grids.trailing(steps, schedule), (0, 200 - steps)))
        levels = jax.tree.map(lambda leaf: np.where(np.arange(201) > steps, padding, leaf).astype(np.float32), levels)
        return np.asarray(program(levels, steps, value))

    return run, traces


SLOW_VALUES = (("ddim", 0.5), ("dpmpp_2m_sde", 1.0), ("restart", 0.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("ancestral", 0.0), ("ddim", 0.0), ("edm", 2.0), ("heun", 0.0), ("plms", 0.0), ("pndm", 0.0)),
        *(("dpmpp_2m_sde", 0.0), ("unipc", 0.0)),
        *(pytest.param(name, value, marks=pytest.mark.slow) for name, value in SLOW_VALUES),
    ],
)
def test_samples_have_the_distribution_of_a_mixture(name, value):
    """Compares the whole distribution by the Kolmogorov-Smirnov distance."""
    x = mixture_program(name)[0](200, value)
    cdf = lambda x: (WEIGHTS * stats.norm.cdf(x[:, None], MEANS, STDS)).sum(-1)  # noqa: E731
    first_order = name in ("ancestral", "ddim") or (name, value) == ("dpmpp_2m_sde", 1.0)
    discretisation_error = 0.02 if first_order else 0.005  # of 200 steps
    # 1.95: one in a thousand
    assert stats.ks_1samp(x, cdf).statistic < 1.95 / np.sqrt(len(x)) + discretisation_error


@pytest.mark.parametrize("name", [*TRACED, "unipc"])
def test_steps_and_options_share_a_compilation(name):
    """Levels after the last step of a padded grid have no effect."""
    run, traces = mixture_program(name)
    samples = [run(steps, value) for steps in (5, 20) for value in (0.0, 0.7)]
    assert np.isfinite(samples).all()
    np.testing.assert_array_equal(run(5, 0.7, padding=np.nan), samples[1])
    if name in TRACED:
        assert np.abs(samples[0] - samples[1]).max() > 0.01
    assert len(traces) == 1


FEW = (1, 2, 3, 8, 20)  # steps
FEW_SCHEDULES = ("cosine", "linear", "rectified_flow", "edm")  # they differ in the noise at both ends
WIDTH = 0.5  # standard deviation of Gaussian data of mean MEAN


@functools.cache
def few_steps():
    """Every grid of few steps over some schedules: (cell, tables, levels and steps), the last three stacked."""
    schedules = {name: choices(noise_schedules)[name](1000) for name in FEW_SCHEDULES}
    schedules["cosine, continuous"] = noise_schedules.cosine(1000, continuous=True)
    schedules["linear, zero terminal SNR"] = schedules["linear"].with_zero_terminal_snr()
    cells, times, names = [], [], list(schedules)
    for (name, schedule), (grid, make), n in itertools.product(schedules.items(), choices(time_grids).items(), FEW):
        if grid != "times" and not grid.startswith("ays"):
            cells.append((name, grid, n))
            counts = (n,) if grid == "sections" else ()
            times.append(np.pad(make(n, schedule, *counts), (0, max(FEW) - n)))
    times = jnp.asarray(times, jnp.float32).reshape(len(schedules), -1, max(FEW) + 1)
    levels = [schedule(t) for schedule, t in zip(schedules.values(), times, strict=True)]
    levels = jax.tree.map(lambda *leaves: np.concatenate(leaves), *levels)
    tables = [schedule(jnp.arange(1001.0)) for schedule in schedules.values()]
    which = [names.index(name) for name, *_ in cells]
    tables = [np.stack([np.asarray(getattr(table, kind)) for table in tables])[which] for kind in ("alpha", "sigma")]
    return cells, *jax.tree.map(np.float64, (tables, levels)), np.array([n for *_, n in cells])


@functools.cache
def affine_program(name):
    def one(alphas, sigmas, levels, n, std):
        def denoiser(x, noise, next=None):
            gain = noise.alpha * std**2 / (noise.alpha**2 * std**2 + noise.sigma**2)
            return Denoised(MEAN + gain * (x - noise.alpha * MEAN))

        return basis_run(SAMPLERS[name][0](discrete(alphas, sigmas), n), denoiser, levels, n)

    return jax.jit(jax.vmap(one, (0, 0, 0, 0, None)))


@functools.cache
def sample_moments(name, std=WIDTH):
    """Exact mean and standard deviation [cells] of the samples of each cell, from the marginal of the first level."""
    _, tables, levels, counts = few_steps()
    with jax.enable_x64(True):
        x = np.asarray(affine_program(name)(*tables, levels, counts, std))
    alpha, sigma = levels.alpha[:, 0], levels.sigma[:, 0]
    offset, linear = x[:, 0], x[:, 1:] - x[:, :1]
    mean = linear[:, 0] * alpha * MEAN + offset
    linear[:, 0] *= np.hypot(alpha * std, sigma)
    return mean, np.linalg.norm(linear, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", of_few_steps(SAMPLERS))
def test_data_of_one_point_are_exact_in_any_number_of_steps(name):
    mean, std = sample_moments(name, 0.0)
    np.testing.assert_allclose(mean, np.full(mean.shape, MEAN), atol=1e-6)
    np.testing.assert_allclose(std, np.zeros(std.shape), atol=1e-6)


def exact_moments(name, levels, steps):
    """Mean and standard deviation of the first-order samplers' x_0, from the papers' formulas."""
    mean, var = levels.alpha[0] * MEAN, (levels.alpha[0] * WIDTH) ** 2 + levels.sigma[0] ** 2
    for i in range(steps):
        a, s, a2, s2 = levels.alpha[i], levels.sigma[i], levels.alpha[i + 1], levels.sigma[i + 1]
        gain = a * WIDTH**2 / (a**2 * WIDTH**2 + s**2)
        forward = s**2 - (a / a2) ** 2 * s2**2
        small = forward * s2**2 / s**2
        eta = {"ddim": 0.0, "euler": 0.0, "flow_map": 0.0, "ddim 0.5": 0.5}.get(name, 1.0)
        # x_0-hat = gain x + (1 - gain a) MEAN, eps-hat = (x - a x_0-hat) / s, x' = a2 x_0-hat + direction eps-hat + ..
        direction = np.sqrt(s2**2 - eta**2 * small)
        slope = a2 * gain + direction * (1 - a * gain) / s
        offset = (1 - gain * a) * MEAN * (a2 - direction * a / s)
        noise = forward if name in ("ancestral, large", "ddim hat") else eta**2 * small
        mean, var = slope * mean + offset, slope**2 * var + (noise if s2 > 0 else 0.0)
    return mean, np.sqrt(var)


OF_POSTERIORS = sorted(name for name, (_, order) in SAMPLERS.items() if order == 1 and name != "euler_maruyama")


@pytest.mark.parametrize("name", OF_POSTERIORS)
def test_moments_of_first_order_samplers_at_few_steps(name):
    _, _, levels, counts = few_steps()
    moments = np.array([exact_moments(name, sampling.at(levels, i), n) for i, n in enumerate(counts)])
    mean, std = sample_moments(name)
    np.testing.assert_allclose(mean, moments[:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(std, moments[:, 1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", of_few_steps(name for name, (_, order) in SAMPLERS.items() if order > 1))
def test_few_steps_of_higher_order_do_not_overshoot(name):
    """On every grid and schedule, they are not much further from the data than the first order."""
    first_order = "ancestral" if name in STOCHASTIC and name != "edm" else "ddim"
    cells, *_ = few_steps()
    stds = sample_moments(name)[1]
    error, reference = (np.abs(sample_moments(n)[1] / WIDTH - 1) for n in (name, first_order))
    worst = np.argmax(error - reference)
    extrapolates_noise = name in ("dpmpp_3m_sde", "dpmpp_2m_sde heun", "sa_solver")  # by more than half its change
    assert error[worst] < reference[worst] + (0.25 if extrapolates_noise else 0.15), (cells[worst], stds[worst])
    assert stds.max() < 1.5 * WIDTH
    many = np.array([n == max(FEW) for *_, n in cells])
    assert error[many].mean() < (0.75 if extrapolates_noise else 0.6) * reference[many].mean()


@pytest.mark.parametrize(
    ("one", "other"),
    [("ddim 1", "ancestral"), ("ddim hat", "ancestral, large"), ("euler", "ddim"), ("euler_ancestral", "ancestral")],
)
def test_different_names_of_one_sampler(one, other):
    np.testing.assert_allclose(sample_moments(one), sample_moments(other), rtol=1e-6, atol=1e-8)


def test_the_ancestral_posterior_equals_ddpm():
    """Eq. 7 of Ho et al. 2020 in its own letters, between neighbouring steps."""
    schedule = noise_schedules.linear(1000)
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x0, x = 0.3, -0.8
    for t in (2, 500, 1000):
        beta, now, before = 1 - bar[t - 1] / bar[t - 2], bar[t - 1], bar[t - 2]
        mean = np.sqrt(before) * beta / (1 - now) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - now) * x
        levels = schedule(float(t)), schedule(float(t - 1))
        np.testing.assert_allclose(posterior_mean(x0, x, *levels), mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(posterior_variance(*levels), (1 - before) / (1 - now) * beta, rtol=1e-3)


def test_the_direction_shrinks_with_eta():
    """A step keeps the variance alpha^2 var(x_0) + sigma^2 of its level, for any eta."""
    schedule = noise_schedules.cosine(1000)
    now, next = schedule(800.0), schedule(600.0)
    width = np.sqrt(now.alpha**2 * STD**2 + now.sigma**2)
    x = now.alpha * MEAN + width * jax.random.normal(jax.random.key(0), (SAMPLES,))

    def sampled(x, noise):  # a sample of q(x_0 | x_t) instead of its mean makes the step exact for any eta
        width = STD * noise.sigma / jnp.sqrt(noise.alpha**2 * STD**2 + noise.sigma**2)
        return Denoised(best(x, noise).x0 + width * jax.random.normal(jax.random.key(5), x.shape))

    @jax.jit
    def step(eta):
        noise = lambda *levels: jax.random.normal(jax.random.key(2), (SAMPLES,))  # noqa: E731
        return samplers.ddim(eta=eta).step(noise, sampled, (), x, now, next)[0]

    for eta in (0.0, 0.3, 1.0):
        expected = next.alpha**2 * STD**2 + next.sigma**2
        np.testing.assert_allclose(np.var(np.asarray(step(eta))), expected, rtol=5 * np.sqrt(2 / SAMPLES))


@pytest.mark.slow
@pytest.mark.parametrize("times", [(40,), (40, 18), (40, 18, 5, 1)])
def test_multistep_consistency_sampling_is_exact_for_the_exact_consistency_function(times):
    """On a Gaussian: the ODE moves each quantile of a level to that of the first level, which has noise of sigma_min.

    Each step evaluates the function once, so that one step is the function at pure noise.
    """
    schedule, evaluations = noise_schedules.edm(40, sigma_min=0.3), []

    def function(x, noise, next=None):
        evaluations.append(float(noise.t))
        return Denoised(MEAN + jnp.sqrt((STD**2 + 0.3**2) / (STD**2 + noise.sigma**2)) * (x - MEAN))

    levels, keys = schedule(time_grids.times(0, schedule, *times)), jax.random.split(jax.random.key(0), SAMPLES)
    sampler, x = samplers.consistency(schedule=schedule), MEAN + np.hypot(80.0, STD) * np.linspace(-1, 1, SAMPLES)
    one_step = function(x, sampling.at(levels, 0)).x0
    with jax.disable_jit():
        found = sampling.run(keys, function, sampler, levels, len(times), jnp.asarray(x, jnp.float32))
        evaluations.clear()
        samples = sampling.sample(keys, function, sampler, levels, len(times), shape=())
    assert evaluations == list(map(float, times))
    if len(times) == 1:
        np.testing.assert_allclose(found, one_step, rtol=1e-6)
    exact = stats.norm(MEAN, np.hypot(STD, 0.3)).cdf
    assert stats.ks_1samp(np.asarray(samples), exact).statistic < 1.95 / np.sqrt(SAMPLES)


def test_samples_depend_only_on_their_keys():
    schedule = noise_schedules.linear(100)
    levels = schedule(time_grids.trailing(10, schedule))
    keys = jax.random.split(jax.random.key(3), 6)

    @jax.jit
    def run(keys):
        return sampling.sample(keys, best, samplers.ddim(eta=1.0), levels, 10, shape=(2, 2))

    samples = run(keys)
    others = jnp.concatenate([keys[:3], jax.random.split(jax.random.key(4), 3)])
    np.testing.assert_allclose(run(others)[:3], samples[:3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(keys[::-1])[::-1], samples, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(samples))) == samples.size


def test_ancestral_sampling_uses_a_learned_variance():
    """Interpolation 0 is the small variance and 1 the large: the same samples as with the fixed ones."""
    schedule = noise_schedules.linear(100)
    now, next = schedule(60.0), schedule(50.0)
    x = jnp.linspace(-2.0, 2.0, 50)

    @jax.jit
    def step(share):
        noise = lambda *levels: jax.random.normal(jax.random.key(3), (50,))  # noqa: E731

        def denoiser(x, noise):
            return best(x, noise)._replace(variance_interpolation=jnp.full_like(x, share))

        functions = (variance.fixed_small, variance.fixed_large, variance.learned_range)
        steppers = [samplers.ancestral(variance=function) for function in functions]
        return [sampler.step(noise, denoiser, sampler.init(x), x, now, next)[0] for sampler in steppers]

    small, large, learned = step(0.0)
    np.testing.assert_allclose(learned, small, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step(1.0)[2], large, rtol=1e-4, atol=1e-5)
    assert np.abs(step(0.5)[2] - large).max() > 0.01
