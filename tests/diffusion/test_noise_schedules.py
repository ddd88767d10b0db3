"""Schedules against float64 NumPy from the formulas of the papers."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import noise_schedules
from diffjax.registry import choices

FIRST = 1e-3  # t / T of a continuous schedule's first level
OTHER = {  # options that are not the defaults
    "linear": {"beta_min": 2e-4, "beta_max": 0.03},
    "scaled_linear": {"beta_min": 1e-3, "beta_max": 0.02},
    "cosine": {"offset": 0.02},
    "sigmoid": {"start": 0.0, "end": 3.0, "temperature": 0.7},
    "variance_exploding": {"sigma_min": 0.02, "sigma_max": 348.0},
    "edm": {"sigma_min": 0.01, "sigma_max": 50.0, "rho": 5.0},
    "rectified_flow": {"shift": 3.0, "end": 0.999},
    "trig_flow": {"sigma_data": 1.0},
    "learned": {"gamma_min": -10.0, "gamma_max": 7.0},
}


def chain(betas):
    """alpha-bar by the plain product of Ho et al. 2020; beta clipped as in Improved DDPM."""
    bar = np.cumprod(1 - np.minimum(betas, 0.999))
    return np.sqrt(bar), np.sqrt(1 - bar)


def preserving(bar):
    return np.sqrt(bar), np.sqrt(1 - bar)


class Linear:
    """Ho et al. 2020, sec. 4; continuous: Song et al. 2021b, eq. 33."""

    def discrete(T, beta_min=1e-4, beta_max=0.02):
        return chain(np.linspace(beta_min, beta_max, T) * 1000 / T)

    def continuous(u, beta_min=1e-4, beta_max=0.02):
        log_bar = -(u**2) * 1000 * (beta_max - beta_min) / 2 - u * 1000 * beta_min
        return np.exp(log_bar / 2), np.sqrt(-np.expm1(log_bar))


class ScaledLinear:
    """Rombach et al. 2022's code: linspace of roots, squared; continuous: its integral."""

    def discrete(T, beta_min=8.5e-4, beta_max=0.012):
        return chain(np.linspace(beta_min**0.5, beta_max**0.5, T) ** 2 * 1000 / T)

    def continuous(u, beta_min=8.5e-4, beta_max=0.012):
        low, slope = beta_min**0.5, beta_max**0.5 - beta_min**0.5
        log_bar = -1000 * ((low + slope * u) ** 3 - low**3) / (3 * slope)
        return np.exp(log_bar / 2), np.sqrt(-np.expm1(log_bar))


class Cosine:
    """Nichol & Dhariwal 2021, eq. 17."""

    def bar(u, offset):
        f = lambda u: np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2  # noqa: E731
        return f(u) / f(0.0)

    def discrete(T, offset=0.008):
        bar = Cosine.bar(np.arange(T + 1) / T, offset)
        return chain(1 - bar[1:] / bar[:-1])

    def continuous(u, offset=0.008):
        return preserving(np.maximum(Cosine.bar(u, offset), np.exp(-20)))


class Sigmoid:
    """Chen 2023, algorithm 1."""

    def bar(u, start, end, temperature):
        f = lambda x: 1 / (1 + np.exp(-x / temperature))  # noqa: E731
        return (f(end) - f(u * (end - start) + start)) / (f(end) - f(start))

    def discrete(T, start=-3.0, end=3.0, temperature=1.0):
        bar = Sigmoid.bar(np.arange(T + 1) / T, start, end, temperature)
        return chain(1 - bar[1:] / bar[:-1])

    def continuous(u, start=-3.0, end=3.0, temperature=1.0):
        return preserving(np.maximum(Sigmoid.bar(u, start, end, temperature), np.exp(-20)))


def exploding(sigma):
    return np.ones_like(sigma), sigma


class VarianceExploding:
    """Song et al. 2021b, eq. 30."""

    def discrete(T, **options):
        return exploding(VarianceExploding.sigma(np.arange(T) / (T - 1) if T > 1 else np.ones(1), **options))

    def continuous(u, **options):
        return exploding(VarianceExploding.sigma((u - FIRST) / (1 - FIRST), **options))

    def sigma(u, sigma_min=0.01, sigma_max=50.0):
        return sigma_min * np.exp(u * np.log(sigma_max / sigma_min))


class Edm:
    """Karras et al. 2022, eq. 5, whose i counts from the noisy end."""

    def discrete(T, **options):
        return exploding(Edm.sigma(np.arange(T)[::-1] / (T - 1) if T > 1 else np.zeros(1), **options))

    def continuous(u, **options):
        return exploding(Edm.sigma((1 - u) / (1 - FIRST), **options))

    def sigma(i, sigma_min=0.002, sigma_max=80.0, rho=7.0):  # i is their i / (N - 1)
        return (sigma_max ** (1 / rho) + i * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


class RectifiedFlow:
    """x_t = (1 - t) x_0 + t eps; Esser et al. 2024, eq. 23."""

    def discrete(T, **options):
        return RectifiedFlow.continuous(np.arange(1, T + 1) / T, **options)

    def continuous(u, shift=1.0, end=1.0):
        u = shift * u / (1 + (shift - 1) * u)
        return 1 - end * u, end * u


class TrigFlow:
    """Lu & Song 2025, sec. 3: x = cos(theta) x_0 + sin(theta) z."""

    def discrete(T, **options):
        return TrigFlow.continuous(np.arange(1, T + 1) / T, **options)

    def continuous(u, sigma_data=0.5):
        return np.cos(u * np.pi / 2), sigma_data * np.sin(u * np.pi / 2)


class Learned:
    """Before it has parameters: gamma linear from the first level to the last (Kingma et al. 2021, app. H)."""

    def discrete(T, **options):
        return Learned.at(np.arange(T) / (T - 1) if T > 1 else np.ones(1), **options)

    def continuous(u, **options):
        return Learned.at((u - FIRST) / (1 - FIRST), **options)

    def at(u, gamma_min=-13.3, gamma_max=5.0):
        gamma = gamma_min + u * (gamma_max - gamma_min)
        return 1 / np.sqrt(1 + np.exp(gamma)), 1 / np.sqrt(1 + np.exp(-gamma))


PAPERS = {
    "linear": Linear,
    "scaled_linear": ScaledLinear,
    "cosine": Cosine,
    "sigmoid": Sigmoid,
    "variance_exploding": VarianceExploding,
    "edm": Edm,
    "rectified_flow": RectifiedFlow,
    "trig_flow": TrigFlow,
    "learned": Learned,
}
ALL = sorted(PAPERS)
FIXED = [name for name in ALL if name != "learned"]
CASES = [*((name, {}) for name in ALL), *OTHER.items()]


def make(name, timesteps=1000, **options):
    return choices(noise_schedules)[name](timesteps, **options)


def f64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


SIZE = 4001  # of all inputs, which are padded: JAX compiles each operation once


def levels_at(schedule, t):
    """Levels of `schedule` at timesteps t [N], float64."""
    t = np.asarray(t, np.float32)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64)[: len(t)], schedule(np.pad(t, (0, SIZE - len(t)))))


def times_at(schedule, log_snr):
    return np.asarray(schedule.time_at(np.pad(log_snr, (0, SIZE - len(log_snr)))))[: len(log_snr)]


def log_snr_of(alpha, sigma):
    with np.errstate(divide="ignore"):
        return 2 * (np.log(alpha) - np.log(sigma))


def test_the_tables_are_complete():
    assert set(PAPERS) == set(OTHER) == set(choices(noise_schedules))


@pytest.mark.parametrize("timesteps", [1, 2, 10, 1000, 4000])
def test_discrete_levels(timesteps):
    for name, options in CASES:
        check_discrete_levels(name, options, timesteps)


def check_discrete_levels(name, options, timesteps):
    schedule = make(name, timesteps, **options)
    t = np.arange(timesteps + 1.0)
    noise = levels_at(schedule, t)
    alpha, sigma = PAPERS[name].discrete(timesteps, **options)
    tolerance = 1e-5 if name == "learned" else 3e-7  # a table's values are rounded once
    np.testing.assert_allclose(noise.alpha[1:], alpha, rtol=tolerance, atol=1e-16)
    np.testing.assert_allclose(noise.sigma[1:], sigma, rtol=tolerance)
    assert (noise.alpha[0], noise.sigma[0]) == (1, 0)
    np.testing.assert_array_equal(noise.t, t)
    assert (schedule.timesteps, schedule.first, schedule.continuous) == (timesteps, 1.0, False)


@pytest.mark.parametrize("timesteps", [1, 1000])
def test_continuous_levels(timesteps):
    u = np.array([FIRST, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97])
    for name, options in CASES:
        schedule = make(name, timesteps, continuous=True, **options)
        noise = levels_at(schedule, u * timesteps)
        alpha, sigma = PAPERS[name].continuous(u, **options)
        np.testing.assert_allclose(noise.alpha, alpha, rtol=2e-5, err_msg=name)
        np.testing.assert_allclose(noise.sigma, sigma, rtol=2e-5, err_msg=name)
        assert (schedule.timesteps, schedule.first, schedule.continuous) == (timesteps, FIRST * timesteps, True)


def test_continuous_schedules_are_precise_at_the_noisy_end():
    """alpha is a small difference of numbers near one there, which float32 would lose."""
    t = np.array([980.0, 990.0, 995.0, 999.0, 1000.0], np.float32)
    for name, options in CASES:
        noise = levels_at(make(name, continuous=True, **options), t)
        alpha, sigma = PAPERS[name].continuous(t.astype(np.float64) / 1000, **options)
        np.testing.assert_allclose(noise.alpha, alpha, rtol=1e-5, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(noise.sigma, sigma, rtol=1e-5, err_msg=name)


def test_continuous_schedules_are_precise_near_the_image():
    """sigma is the small difference there. Exploding schedules are linear from the clean image to the first level."""
    u = np.array([1e-6, 1e-5, 1e-4])
    for name, options in CASES:
        if name == "learned":
            continue
        sigma = levels_at(make(name, continuous=True, **options), u * 1000).sigma
        if name in ("variance_exploding", "edm"):
            expected = u / FIRST * PAPERS[name].continuous(FIRST, **options)[1]
        else:
            expected = PAPERS[name].continuous(u, **options)[1]
        np.testing.assert_allclose(sigma, expected, rtol=1e-5, err_msg=name)


def test_linear_equals_ddpm():
    """The figures of Ho et al. 2020: beta from 1e-4 to 0.02 and next to no signal at the end."""
    noise = levels_at(noise_schedules.linear(1000), np.arange(1001.0))
    signal_power = noise.alpha**2
    np.testing.assert_allclose(1 - signal_power[1] / signal_power[0], 1e-4, rtol=1e-2)
    np.testing.assert_allclose(1 - signal_power[1000] / signal_power[999], 0.02, rtol=1e-4)
    np.testing.assert_allclose(signal_power[1000], 4.0358e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "alpha"), [("linear", 0.006353), ("cosine", 4.928e-5), ("scaled_linear", 0.068265)])
def test_the_last_alpha_equals_published_values(name, alpha):
    """Lin et al. 2024, table 1."""
    np.testing.assert_allclose(make(name)(1000.0).alpha, alpha, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in FIXED if name not in ("variance_exploding", "edm")])
def test_continuous_is_the_limit_of_discrete(name):
    u = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    fine = PAPERS[name].discrete(100_000)[0][(u * 100_000).astype(int) - 1]
    np.testing.assert_allclose(levels_at(make(name, continuous=True), u * 1000).alpha, fine, rtol=1e-3)


@pytest.mark.parametrize("continuous", [False, True])
def test_snr_decreases_with_time(continuous):
    for name, options in CASES:
        check_falling_snr(name, options, continuous)


def check_falling_snr(name, options, continuous):
    noise = levels_at(make(name, continuous=continuous, **options), np.arange(1001.0))
    assert (noise.alpha[0], noise.sigma[0]) == (1, 0)
    snr = log_snr_of(noise.alpha[1:], noise.sigma[1:])
    assert (np.diff(snr) < 0).all()
    assert np.isfinite(snr[:-1]).all()
    assert np.isfinite(snr[-1]) != (name in ("rectified_flow", "trig_flow") and "end" not in options)
    if name in ("variance_exploding", "edm"):
        np.testing.assert_array_equal(noise.alpha, 1)
    elif name == "rectified_flow":
        np.testing.assert_allclose(noise.alpha + noise.sigma, 1, rtol=1e-6)
    else:
        std = options.get("sigma_data", 0.5) if name == "trig_flow" else 1.0
        np.testing.assert_allclose(noise.alpha**2 + (noise.sigma / std) ** 2, 1, rtol=1e-6)


@pytest.mark.parametrize("timesteps", [2, 10, 1000])
def test_levels_between_integers_are_between_their_neighbours(timesteps):
    for name in FIXED:
        for zero in (False, True):
            check_levels_between_integers(name, zero, timesteps)


def check_levels_between_integers(name, zero, timesteps):
    schedule = make(name, timesteps)
    schedule = schedule.with_zero_terminal_snr() if zero else schedule
    levels = levels_at(schedule, np.arange(1.0, timesteps + 1))
    for fraction in (0.25, 0.5):
        between = levels_at(schedule, np.arange(1.0, timesteps) + fraction)
        snr = log_snr_of(levels.alpha, levels.sigma)
        expected = (1 - fraction) * snr[:-1] + fraction * snr[1:]
        signal = np.isfinite(expected)
        np.testing.assert_allclose(log_snr_of(between.alpha, between.sigma)[signal], expected[signal], atol=2e-5)
        assert np.isclose(between.alpha, np.clip(between.alpha, levels.alpha[1:], levels.alpha[:-1]), rtol=1e-5).all()
        assert np.isclose(between.sigma, np.clip(between.sigma, levels.sigma[:-1], levels.sigma[1:]), rtol=1e-5).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("continuous", [False, True])
def test_time_at_inverts_the_level(name, continuous):
    for schedule in [make(name, continuous=continuous), *([] if continuous else [make(name, 10), make(name, 1)])]:
        timesteps, first = schedule.timesteps, schedule.first
        whole = np.arange(1.0, timesteps + 1)
        t = np.linspace(first, 0.98 * timesteps, 500) if continuous else np.append(whole, whole[:-1] + 0.25)
        wanted = log_snr_of(*(PAPERS[name].continuous(t / timesteps) if continuous else levels_at(schedule, t)[1:]))
        times = times_at(schedule, np.append(wanted, [np.inf, 100.0, -100.0, -np.inf]))
        np.testing.assert_allclose(times[:-4], t, rtol=1e-4, atol=2e-5 * timesteps)
        np.testing.assert_allclose(times[-4:], [first, first, timesteps, timesteps], rtol=1e-5)
        assert jax.eval_shape(schedule.time_at, -100.0).shape == ()


@pytest.mark.parametrize("continuous", [False, True])
def test_times_of_any_shape_give_the_levels_of_scalars(continuous):
    t = np.array([0.0, 1.0, 50.5, 100.0])
    for name in ALL:
        schedule = make(name, 100, continuous=continuous)
        whole = levels_at(schedule, t)
        for i, time in enumerate(t):
            one = schedule(time)
            assert one.alpha.shape == one.sigma.shape == ()
            jax.tree.map(lambda leaf, one, i=i: np.testing.assert_allclose(leaf[i], one, rtol=1e-6), whole, one)
        assert jax.eval_shape(schedule, t.reshape(2, 2)).sigma.shape == (2, 2)


def rescaled(alpha, sigma, first, last):
    """Lin et al. 2024, algorithm 1, on sqrt(alpha-bar) once the variance is one."""
    root, root_first, root_last = (a / np.hypot(a, s) for a, s in ((alpha, sigma), first, last))
    root = (root - root_last) * root_first / (root_first - root_last)
    return root, np.sqrt(1 - root**2)


@pytest.mark.parametrize("timesteps", [2, 10, 1000, 4000])
def test_zero_terminal_snr(timesteps):
    for name in FIXED:
        check_zero_terminal_snr(name, timesteps)


def check_zero_terminal_snr(name, timesteps):
    levels = PAPERS[name].discrete(timesteps)
    alpha, sigma = rescaled(*levels, *([level[i] for level in levels] for i in (0, -1)))
    noise = levels_at(make(name, timesteps).with_zero_terminal_snr(), np.arange(timesteps + 1.0))
    np.testing.assert_allclose(noise.alpha[1:], alpha, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(noise.sigma[1:], sigma, rtol=1e-6)
    assert (noise.alpha[0], noise.sigma[0]) == (1, 0)
    assert (noise.alpha[-1], noise.sigma[-1]) == (0, 1)
    first = levels[0][0], levels[1][0]
    np.testing.assert_allclose(noise.alpha[1] / noise.sigma[1], first[0] / first[1], rtol=1e-6)


@pytest.mark.parametrize("name", FIXED)
def test_zero_terminal_snr_of_a_continuous_schedule(name):
    u = np.array([FIRST, 0.003, 0.1, 0.5, 0.9, 1.0])
    paper = PAPERS[name].continuous
    alpha, sigma = rescaled(*paper(u), paper(FIRST), paper(1.0))
    schedule = make(name, continuous=True).with_zero_terminal_snr()
    noise = levels_at(schedule, u * 1000)
    np.testing.assert_allclose(noise.alpha, alpha, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(noise.sigma, sigma, rtol=1e-4)
    np.testing.assert_array_equal(noise.alpha[-1], 0)
    np.testing.assert_allclose(noise.sigma[-1], 1, rtol=2e-7)
    clean = schedule(0.0)
    assert (clean.alpha, clean.sigma) == (1, 0)
    assert schedule.continuous
    assert (schedule.timesteps, schedule.first) == (1000, 1.0)


def test_zero_terminal_snr_is_exact_under_any_compilation():
    schedules = [make(name, continuous=c).with_zero_terminal_snr() for name in FIXED for c in (False, True)]
    programs = jax.jit(lambda t: [(schedule(t).alpha, jax.vmap(schedule)(t).alpha) for schedule in schedules])
    for schedule, alphas in zip(schedules, programs(np.array([500.0, 1000.0], np.float32)), strict=True):
        assert schedule(1000.0).alpha == alphas[0][-1] == alphas[1][-1] == 0


def test_zero_terminal_snr_of_one_level_or_a_learned_schedule_raises():
    for name in FIXED:
        with pytest.raises(ValueError, match="at least two levels"):
            make(name, 1).with_zero_terminal_snr()
    for continuous in (False, True):
        with pytest.raises(ValueError, match="learned schedule"):
            noise_schedules.learned(continuous=continuous).with_zero_terminal_snr()


def softplus(x):
    return np.logaddexp(0.0, x)


def gamma_of(params, u):
    """VDM, app. H: l1(t) + l3(sigmoid(l2(l1(t)))) with positive weights, moved to its ends."""
    p = f64(params)

    def rise(u):
        inside = softplus(p["steepness"]) * (u[:, None] - p["centre"])
        return softplus(p["slope"]) * u + (softplus(p["height"]) / (1 + np.exp(-inside))).mean(1)

    low, high = rise(np.zeros(1)), rise(np.ones(1))
    return p["ends"][0] + (p["ends"][1] - p["ends"][0]) * (rise(u) - low) / (high - low)


def random_params(seed):
    rng = np.random.default_rng(seed)
    params = noise_schedules.learned().init(hidden=32)
    params = {name: jnp.asarray(rng.normal(scale=3.0, size=leaf.shape), jnp.float32) for name, leaf in params.items()}
    return params | {"ends": jnp.sort(params["ends"])}


@pytest.mark.parametrize("continuous", [False, True])
def test_a_learned_schedule_is_nearly_linear_at_initialisation(continuous):
    fresh = noise_schedules.learned(continuous=continuous)
    params = fresh.init(64)
    t = np.linspace(fresh.first, 1000, 50)
    wanted = -13.3 + (t - fresh.first) / (1000 - fresh.first) * 18.3
    np.testing.assert_allclose(-log_snr_of(*levels_at(fresh, t)[1:]), wanted, atol=1e-4)
    found = -log_snr_of(*levels_at(fresh.bind(params), t)[1:])
    np.testing.assert_allclose(found, wanted, atol=0.02 * 18.3)
    np.testing.assert_allclose(found[[0, -1]], [-13.3, 5.0], rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_learned_schedule_is_monotone_for_any_parameters(seed):
    params = random_params(seed)
    for continuous in (False, True):
        schedule = noise_schedules.learned(100, continuous=continuous).bind(params)
        t = np.linspace(schedule.first, 100, 100)
        snr = log_snr_of(*levels_at(schedule, t)[1:])
        np.testing.assert_allclose(-snr, gamma_of(params, np.linspace(0, 1, 100)), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(-snr[[0, -1]], params["ends"], rtol=1e-5, atol=1e-5)
        assert (np.diff(snr) <= 1e-6).all()
        assert snr[0] > snr[-1]
        steep = np.gradient(snr) < -1e-2 * (snr[0] - snr[-1])  # not where it is flat
        np.testing.assert_allclose(time_of(continuous, params, snr)[steep], t[steep], atol=0.05)


@functools.partial(jax.jit, static_argnums=0)
def time_of(continuous, params, snr):
    return noise_schedules.learned(100, continuous=continuous).bind(params).time_at(snr)


def test_every_parameter_of_a_learned_schedule_has_a_gradient():
    params = random_params(0)

    @jax.jit
    @jax.grad
    def slope(params):
        noise = noise_schedules.learned(100).bind(params)(jnp.array([0.0, 1.0, 30.0, 70.0, 100.0]))
        return jnp.sum(noise.alpha * jnp.array([1.0, 2.0, -3.0, 1.0, 5.0]))

    for name, leaf in slope(params).items():
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).sum() > 0, name
    ends = slope(params)["ends"]
    assert (ends != 0).all()


def test_a_schedule_with_learned_parameters_can_be_hashed():
    schedule = noise_schedules.learned(10)
    hash(schedule.bind(schedule.init()))  # arrays cannot: a schedule is hashed by identity
