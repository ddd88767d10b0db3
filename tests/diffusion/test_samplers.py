"""Samplers on data with a known best denoiser: their order of convergence, and the distribution of their samples."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp
from scipy import stats
from scipy.integrate import solve_ivp

from diffjax.diffusion import denoiser as denoisers
from diffjax.diffusion import noise_schedules, parameterizations, samplers, sampling, time_grids, variance
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import Noise, posterior_mean, posterior_variance
from diffjax.diffusion.noise_schedules import Discrete, ScheduleTables
from diffjax.registry import choices

# Constructor, and order of convergence: in x, or in mean and variance for samplers that add noise.
SAMPLERS = {
    "ancestral": (lambda schedule, steps: samplers.ancestral(), 1),
    "ancestral, large": (lambda schedule, steps: samplers.ancestral(variance=variance.fixed_large), 1),
    "ddim": (lambda schedule, steps: samplers.ddim(), 1),
    "ddim 0.5": (lambda schedule, steps: samplers.ddim(eta=0.5), 1),
    "ddim 1": (lambda schedule, steps: samplers.ddim(eta=1.0), 1),
    "ddim hat": (lambda schedule, steps: samplers.ddim(eta=1.0, sigma_hat=True), 1),
    "euler": (lambda schedule, steps: samplers.euler(), 1),
    "euler_ancestral": (lambda schedule, steps: samplers.euler_ancestral(), 1),
    "heun": (lambda schedule, steps: samplers.heun(), 2),
    "edm": (lambda schedule, steps: samplers.edm(schedule=schedule, steps=steps, churn=2.0), 2),
    "plms": (lambda schedule, steps: samplers.plms(), 2),  # Liu et al. 2022, property 3.3
    "pndm": (lambda schedule, steps: samplers.pndm(schedule=schedule), 2),
    "dpmpp_2m": (lambda schedule, steps: samplers.dpmpp_2m(), 2),
    "dpmpp_2m_sde": (lambda schedule, steps: samplers.dpmpp_2m_sde(), 2),
    "unipc": (lambda schedule, steps: samplers.unipc(), 3),  # its corrector adds one: Zhao et al. 2023, theorem 3.1
}
DETERMINISTIC = ["ddim", "euler", "heun", "plms", "pndm", "dpmpp_2m", "unipc"]
STOCHASTIC = sorted(SAMPLERS.keys() - set(DETERMINISTIC))
OTHER_NAMES = {"euler", "euler_ancestral", "ddim 1", "ddim hat", "ancestral, large"}  # of other samplers in the table

MEAN, STD = 0.7, 0.3  # of Gaussian data
MEANS, STDS, WEIGHTS = np.array([-1.0, 0.7]), np.array([0.3, 0.4]), np.array([0.4, 0.6])  # of a mixture
SAMPLES = 20_000


def test_the_table_is_complete():
    assert {name.replace(",", " ").split()[0] for name in SAMPLERS} == set(choices(samplers))


def best(x, noise):
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
    """alpha = cos, sigma = sin of an angle that is t right angles: a schedule in float64."""

    def __call__(self, t):
        angle = jnp.asarray(t) * jnp.pi / 2
        return Noise(jnp.asarray(t), jnp.cos(angle), jnp.sin(angle))

    def time_at(self, log_snr):
        return jnp.arctan(jnp.exp(-log_snr / 2)) * 2 / jnp.pi


FROM, TO = 0.9, 0.1  # between them nothing is singular


def measured_order(error, counts=(40, 80, 160)):
    errors = np.array([error(n) for n in counts])
    return np.log2(errors[-2] / errors[-1])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", DETERMINISTIC)
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
        denoiser = lambda x, noise: Denoised(best_of_mixture(x, noise))  # noqa: E731
        return sampling.run(keys, denoiser, SAMPLERS[name][0](Angle(), n), levels, n, start)

    def error(n):
        levels = Angle()(jnp.pad(jnp.linspace(FROM, TO, n + 1), (0, 160 - n), constant_values=TO))
        return np.abs(solve(levels, n) - exact).max()

    assert error(160) < 6e-3
    assert measured_order(error) == pytest.approx(SAMPLERS[name][1], abs=0.2)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_order_of_convergence_in_mean_and_variance(name, float64, monkeypatch):
    """On a Gaussian every step is affine in x and the noises: one run on a basis of them gives both moments exactly."""

    @functools.partial(jax.jit, static_argnums=0)
    def affine(n):
        levels = Angle()(jnp.linspace(FROM, TO, n + 1))
        sampler = SAMPLERS[name][0](Angle(), n)
        x = jnp.zeros(n + 2).at[1].set(1.0)  # nothing; x alone; the noise of each step alone

        def body(i, state):
            noise = jnp.zeros(n + 2).at[2 + i].set(1.0)
            monkeypatch.setattr(samplers, "normal_each", lambda keys, shape, dtype: noise)
            return sampler.step(None, best, state[1], state[0], sampling.at(levels, i), sampling.at(levels, i + 1))

        return lax.fori_loop(0, n, body, (x, sampler.init(x)))[0]

    def error(n):
        offset, by_x, *by_noise = np.asarray(affine(n))
        start, end = (jax.tree.map(float, Angle()(t)) for t in (FROM, TO))
        mean = (by_x - offset) * start.alpha * MEAN + offset
        var = (by_x - offset) ** 2 * (start.alpha**2 * STD**2 + start.sigma**2) + np.sum((by_noise - offset) ** 2)
        return max(abs(mean - end.alpha * MEAN), abs(var - end.alpha**2 * STD**2 - end.sigma**2))

    assert measured_order(error) == pytest.approx(SAMPLERS[name][1], abs=0.25)


@functools.cache
def on_gaussian(name):
    """Returns a compiled program that samples with the best denoiser of the Gaussian, for grids padded to 50 steps."""
    keys = jax.random.split(jax.random.key(1), SAMPLES)
    run = jax.jit(lambda levels, n: sampling.sample(keys, best, SAMPLERS[name][0](None, n), levels, n, shape=()))

    def sample(schedule, grid, steps):
        return np.asarray(run(schedule(np.pad(grid(steps, schedule), (0, 50 - steps))), steps))

    return sample


@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - OTHER_NAMES))
def test_samplers_reproduce_a_mixture(name):
    """Compares the whole distribution, after all steps, by Kolmogorov and Smirnov's distance."""
    schedule, steps, count = noise_schedules.cosine(1000), 200, 10_000
    levels = schedule(time_grids.trailing(steps, schedule))
    keys = jax.random.split(jax.random.key(1), count)
    denoiser = lambda x, noise: Denoised(best_of_mixture(x, noise))  # noqa: E731
    x = np.asarray(sampling.sample(keys, denoiser, SAMPLERS[name][0](schedule, steps), levels, steps, shape=()))
    cdf = lambda x: (WEIGHTS * stats.norm.cdf(x[:, None], MEANS, STDS)).sum(-1)  # noqa: E731
    discretisation_error = 0.02 if SAMPLERS[name][1] == 1 else 0.005  # of 200 steps
    # 1.95: one in a thousand
    assert stats.ks_1samp(x, cdf).statistic < 1.95 / np.sqrt(count) + discretisation_error


def discrete(alphas, sigmas):
    """Returns the discrete schedule of levels [T + 1], which may be traced."""
    with np.errstate(divide="ignore"):
        log_snr = jnp.clip(2 * (jnp.log(alphas) - jnp.log(sigmas)), -40.0, 80.0)
    power = alphas**2 + sigmas**2
    return Discrete(len(alphas) - 1, ScheduleTables(alphas, sigmas, log_snr, alphas**2 / power, 1 / power))


@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - OTHER_NAMES))
def test_samplers_reproduce_data_of_one_point_in_any_number_of_steps(name, float64):
    schedules = [noise_schedules.linear(100), noise_schedules.rectified_flow(100), noise_schedules.edm(100)]
    steps = np.array([1, 2, 7] * 3)
    cells = [schedule for schedule in schedules for _ in range(3)]
    levels = [s(np.pad(time_grids.trailing(n, s), (0, 7 - n))) for s, n in zip(cells, steps, strict=True)]
    levels = jax.tree.map(lambda *leaves: np.stack(leaves), *levels)
    alphas, sigmas = (np.stack([getattr(s, table) for s in cells]) for table in ("alphas", "sigmas"))

    @jax.jit
    @jax.vmap
    def points(alphas, sigmas, levels, n):
        sampler = SAMPLERS[name][0](discrete(alphas, sigmas), n)
        denoiser = lambda x, noise: Denoised(jnp.full_like(x, 0.4))  # noqa: E731
        return sampling.sample(jax.random.split(jax.random.key(0), 5), denoiser, sampler, levels, n, shape=())

    np.testing.assert_allclose(points(alphas, sigmas, levels, steps), np.full((9, 5), 0.4), atol=1e-6)


def exact_moments(name, levels, steps):
    """Mean and variance of the first-order samplers' x_0 in float64, from the papers' formulas."""
    mean, var = 0.0, 1.0
    alpha, sigma = np.asarray(levels.alpha, np.float64), np.asarray(levels.sigma, np.float64)
    for i in range(steps):
        a, s, a2, s2 = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        gain = a * STD**2 / (a**2 * STD**2 + s**2)
        forward = s**2 - (a / a2) ** 2 * s2**2
        small = forward * s2**2 / s**2
        eta = {"ddim": 0.0, "euler": 0.0, "ddim 0.5": 0.5}.get(name, 1.0)
        # x_0-hat = gain x + (1 - gain a) MEAN, eps-hat = (x - a x_0-hat) / s, x' = a2 x_0-hat + direction eps-hat + ..
        direction = np.sqrt(s2**2 - eta**2 * small)
        slope = a2 * gain + direction * (1 - a * gain) / s
        offset = (1 - gain * a) * MEAN * (a2 - direction * a / s)
        noise = forward if name in ("ancestral, large", "ddim hat") else eta**2 * small
        mean, var = slope * mean + offset, slope**2 * var + (noise if s2 > 0 else 0.0)
    return mean, var


@pytest.mark.parametrize("name", sorted(name for name, (_, order) in SAMPLERS.items() if order == 1))
def test_moments_of_first_order_samplers_at_few_steps(name):
    """Compares with the exact discretisation error, to Monte-Carlo error."""
    schedule = noise_schedules.cosine(1000)
    for steps in (1, 7, 50):
        x = on_gaussian(name)(schedule, time_grids.trailing, steps)
        mean, var = exact_moments(name, schedule(time_grids.trailing(steps, schedule)), steps)
        np.testing.assert_allclose(x.mean(), mean, atol=5 * np.sqrt(max(var, 1e-6) / SAMPLES))
        np.testing.assert_allclose(x.var(), var, rtol=5 * np.sqrt(2 / SAMPLES), atol=1e-6)


FEW = (1, 2, 3, 5, 8, 12, 20)  # steps
ON_THE_WAY = ("cosine", "linear", "rectified_flow", "edm")  # of the schedules; they differ in the noise at both ends
WIDTH = 0.5  # standard deviation of Gaussian data of mean zero


@functools.cache
def few_steps():
    """Every grid of few steps over some schedules: (cell, tables, levels and steps), the last three stacked."""
    made = {name: choices(noise_schedules)[name](1000) for name in ON_THE_WAY}
    made["cosine, continuous"] = noise_schedules.cosine(1000, continuous=True)
    made["linear, zero terminal SNR"] = made["linear"].with_zero_terminal_snr()
    cells, times, names = [], [], list(made)
    for (name, schedule), (grid, make), n in itertools.product(made.items(), choices(time_grids).items(), FEW):
        if grid != "times":
            cells.append((name, grid, n))
            given = (n,) if grid == "sections" else ()
            times.append(np.pad(make(n, schedule, *given), (0, max(FEW) - n)))
    times = jnp.asarray(times, jnp.float32).reshape(len(made), -1, max(FEW) + 1)
    levels = [schedule(t) for schedule, t in zip(made.values(), times, strict=True)]
    levels = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *levels)
    tables = [schedule(jnp.arange(1001.0)) for schedule in made.values()]
    which = [names.index(name) for name, *_ in cells]
    tables = [np.stack([np.float32(getattr(table, kind)) for table in tables])[which] for kind in ("alpha", "sigma")]
    return cells, tables, levels, np.array([n for *_, n in cells])


@functools.cache
def standard_deviations(name):
    """Of the samples of each cell, from the marginal of the first level. Steps are linear in x and in their noises."""
    _, tables, levels, counts = few_steps()

    def one(alphas, sigmas, levels, n):
        sampler = SAMPLERS[name][0](discrete(alphas, sigmas), n)
        first = sampling.at(levels, 0)
        x = jnp.zeros(max(FEW) + 1).at[0].set(jnp.hypot(first.alpha * WIDTH, first.sigma))

        def denoiser(x, noise):
            return Denoised(noise.alpha * WIDTH**2 / (noise.alpha**2 * WIDTH**2 + noise.sigma**2) * x)

        def body(i, state):  # a step is handed its noise as its keys
            noise = jnp.zeros(max(FEW) + 1).at[1 + i].set(1.0)
            return sampler.step(noise, denoiser, state[1], state[0], sampling.at(levels, i), sampling.at(levels, i + 1))

        return jnp.linalg.norm(lax.fori_loop(0, n, body, (x, sampler.init(x)))[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplers, "normal_each", lambda keys, shape, dtype: keys)
        return np.asarray(jax.jit(jax.vmap(one))(*tables, levels, counts))


@pytest.mark.parametrize("name", sorted(name for name, (_, order) in SAMPLERS.items() if order > 1))
def test_few_steps_of_higher_order_do_not_overshoot(name):
    """In no number of steps, on no grid and schedule, are they much further from the data than the first order."""
    first_order = "ancestral" if name in STOCHASTIC and name != "edm" else "ddim"
    cells, *_ = few_steps()
    error, reference = (np.abs(standard_deviations(n) / WIDTH - 1) for n in (name, first_order))
    worst = np.argmax(error - reference)
    assert error[worst] < reference[worst] + 0.15, (cells[worst], standard_deviations(name)[worst])
    assert standard_deviations(name).max() < 1.5 * WIDTH
    many = np.array([n == max(FEW) for *_, n in cells])
    assert error[many].mean() < 0.6 * reference[many].mean()


@pytest.mark.parametrize(
    ("one", "other"),
    [("ddim 1", "ancestral"), ("ddim hat", "ancestral, large"), ("euler", "ddim"), ("euler_ancestral", "ancestral")],
)
def test_different_names_of_one_sampler(one, other):
    schedule = noise_schedules.linear(1000)
    a, b = (on_gaussian(name)(schedule, time_grids.leading, 20) for name in (one, other))
    np.testing.assert_allclose(a, b, atol=2e-4)


# Every sampler and every schedule, once at least.
PAIRS = list(zip(sorted(SAMPLERS.keys() - OTHER_NAMES), itertools.cycle(sorted(choices(noise_schedules)))))


@pytest.mark.parametrize(("name", "schedule"), PAIRS)
def test_samples_do_not_depend_on_the_parameterization(name, schedule, float64):
    """The output of an exact network, converted to any parameterization, gives the same samples."""
    schedule = choices(noise_schedules)[schedule](100)
    keys = jax.random.split(jax.random.key(3), 3)
    steps = 3
    sampler = SAMPLERS[name][0](schedule, steps)
    levels = schedule(time_grids.trailing(steps, schedule))
    samples = []
    with jax.disable_jit():
        for choice in choices(parameterizations).values():
            given = {"schedule": schedule} if choice is parameterizations.mu else {}
            parameterization = functools.partial(choice, **given)
            if not np.all(np.isfinite(parameterization(sampling.at(levels, 0)))):
                continue  # eps has no value without any signal

            def denoise(x, noise, parameterization=parameterization):
                def network(scaled, time):
                    c = parameterization(noise)
                    np.testing.assert_allclose(time, jnp.broadcast_to(c.time, 3))
                    return (best(scaled / c.input, noise).x0 - c.skip * scaled / c.input) / c.out

                return denoisers.from_network(network, parameterization)(x, noise)

            samples.append(sampling.sample(keys, denoise, sampler, levels, steps, shape=()))
    assert len(samples) >= 5
    assert np.isfinite(samples[0]).all()
    for other in samples[1:]:
        np.testing.assert_allclose(other, samples[0], atol=1e-5)


def test_the_ancestral_posterior_is_ddpms():
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
    """Else every level would be too noisy: alpha^2 var(x_0) + sigma^2 must come out at each step, here at the first."""
    schedule = noise_schedules.cosine(1000)
    now, next = schedule(800.0), schedule(600.0)
    width = np.sqrt(now.alpha**2 * STD**2 + now.sigma**2)
    x = now.alpha * MEAN + width * jax.random.normal(jax.random.key(0), (SAMPLES,))

    def sampled(x, noise):  # a draw from q(x_0 | x_t) instead of its mean makes the step exact for any eta
        width = STD * noise.sigma / jnp.sqrt(noise.alpha**2 * STD**2 + noise.sigma**2)
        return Denoised(best(x, noise).x0 + width * jax.random.normal(jax.random.key(5), x.shape))

    for eta in (0.0, 0.3, 1.0):
        y, _ = samplers.ddim(eta=eta).step(jax.random.split(jax.random.key(2), SAMPLES), sampled, (), x, now, next)
        expected = next.alpha**2 * STD**2 + next.sigma**2
        np.testing.assert_allclose(np.var(np.asarray(y)), expected, rtol=5 * np.sqrt(2 / SAMPLES))


@pytest.mark.parametrize("name", ["ddim", "edm", "dpmpp_2m_sde", "unipc"])
def test_a_sweep_compiles_once(name):
    """Steps and options are inputs of one program, and padding changes nothing."""
    traces = 0
    schedule = noise_schedules.linear(100)
    given = {"edm": {"schedule": schedule}}.get(name, {})
    make = functools.partial(choices(samplers)[name], **given)
    option = {"ddim": "eta", "edm": "churn", "dpmpp_2m_sde": "eta"}.get(name)
    keys = jax.random.split(jax.random.key(1), 64)

    @jax.jit
    def program(times, steps, value):
        nonlocal traces
        traces += 1
        own = ({option: value} if option else {}) | ({"steps": steps} if name == "edm" else {})
        return sampling.sample(keys, best, make(**own), schedule(times), steps, shape=())

    for steps in (5, 20, 100):
        for value in (0.0, 0.7):
            times = time_grids.linspace(steps, schedule)
            padded = program(np.pad(times, (0, 100 - steps)), steps, value)
            if steps == 5 and value:
                own = ({option: value} if option else {}) | ({"steps": steps} if name == "edm" else {})
                alone = sampling.sample(keys, best, make(**own), schedule(times), steps, shape=())
                np.testing.assert_allclose(padded, alone, atol=1e-4)
    assert traces == 1


def test_samples_depend_on_their_key_alone():
    schedule = noise_schedules.linear(100)
    levels = schedule(time_grids.trailing(10, schedule))
    keys = jax.random.split(jax.random.key(3), 6)

    @jax.jit
    def run(keys):
        return sampling.sample(keys, best, samplers.ddim(eta=1.0), levels, 10, shape=(2, 2))

    whole = run(keys)
    np.testing.assert_allclose(jnp.concatenate([run(keys[:3]), run(keys[3:])]), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(keys[::-1])[::-1], whole, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(whole))) == whole.size


def test_learned_variance_reaches_the_ancestral_sampler():
    """Interpolation 0 is the small variance and 1 the large: the same samples as with the fixed ones."""
    schedule = noise_schedules.linear(100)
    levels = schedule(time_grids.trailing(10, schedule))
    keys = jax.random.split(jax.random.key(3), 50)

    def compiled(variance):
        sampler = samplers.ancestral(variance=variance)

        def denoiser(x, noise, share):
            return best(x, noise)._replace(variance_interpolation=jnp.full_like(x, share))

        def run(share):
            return sampling.sample(keys, functools.partial(denoiser, share=share), sampler, levels, 10, shape=())

        return jax.jit(run)

    small, large = compiled(variance.fixed_small)(0.5), compiled(variance.fixed_large)(0.5)
    learned = compiled(variance.learned_range)
    np.testing.assert_allclose(learned(0.0), small, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(learned(1.0), large, rtol=1e-4, atol=1e-5)
    assert np.abs(learned(0.5) - large).max() > 0.01
