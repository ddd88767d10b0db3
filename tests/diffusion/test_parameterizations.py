"""Each parameterization against its definition, on every kind of schedule."""

import functools

import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import noise_schedules, parameterizations
from diffjax.diffusion.denoiser import from_network
from diffjax.diffusion.noise import Noise
from diffjax.registry import choices

DATA = 0.5  # sigma_data of EDM


def edm_target(x0, eps, alpha, sigma, **_):
    """Karras et al. 2022, eq. 8: (y - c_skip (y + n)) / c_out, n of standard deviation sigma / alpha."""
    std = sigma / alpha
    skip, out = DATA**2 / (std**2 + DATA**2), std * DATA / np.sqrt(DATA**2 + std**2)
    return (x0 - skip * (x0 + std * eps)) / out


def trig_target(x0, eps, alpha, sigma, **_):
    """Lu & Song 2025: dx/dtheta over s = sigma_data, of x = cos(theta) x_0 + sin(theta) z, z of deviation s."""
    theta = np.arctan2(sigma, DATA * alpha)
    return np.cos(theta) * eps - np.sin(theta) * x0 / DATA


def bayes_mean(x0, eps, alpha, sigma, before):
    """Mean of q(x_t-1 | x_t, x_0), a product of two Gaussians in x_t-1, weighted by their precisions."""
    x, ratio = alpha * x0 + sigma * eps, alpha / before.alpha
    step = sigma**2 - ratio**2 * before.sigma**2
    of_x, of_x0 = ratio**2 * before.sigma**2, step  # both precisions times the two variances
    from_x = np.divide(x, ratio, out=np.zeros_like(x), where=ratio > 0)
    return (of_x * from_x + of_x0 * before.alpha * x0) / (of_x + of_x0)


# The network's target as defined in each paper.
TARGETS = {
    "eps": lambda x0, eps, alpha, sigma, **_: eps,
    "x0": lambda x0, eps, alpha, sigma, **_: x0,
    "v": lambda x0, eps, alpha, sigma, **_: alpha * eps - sigma * x0,
    "flow": lambda x0, eps, alpha, sigma, **_: eps - x0,
    "edm": edm_target,
    "trig_flow": trig_target,
    "mu": bayes_mean,
}
SCHEDULES = {
    **{name: make(1000) for name, make in choices(noise_schedules).items()},
    "zero terminal SNR": noise_schedules.linear(1000).with_zero_terminal_snr(),
    "continuous": noise_schedules.cosine(1000, continuous=True),
    "continuous exploding": noise_schedules.edm(1000, continuous=True),
}
TIMES = np.array([1.0, 2.0, 10.0, 500.0, 900.0, 999.0])


def coefficients(name, noise, schedule=None):
    options = {"schedule": schedule} if name == "mu" else {}
    return [np.asarray(c, np.float64) for c in choices(parameterizations)[name](noise, **options)]


def column(noise):
    return Noise(*(np.asarray(leaf, np.float64)[:, None] for leaf in noise))


def test_the_table_is_complete():
    assert {*TARGETS, "consistency"} == set(choices(parameterizations))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_targets_and_their_inverses(name, schedule):
    if name == "mu" and schedule.continuous:
        pytest.skip("has no step before")
    rng = np.random.default_rng(0)
    x0, eps = rng.uniform(-1, 1, (len(TIMES), 16)), rng.normal(size=(len(TIMES), 16))
    noise = schedule(TIMES)
    skip, out, inner, time = coefficients(name, noise, schedule)
    level, before = column(noise), column(schedule(TIMES - 1))
    x = level.alpha * x0 + level.sigma * eps
    target = TARGETS[name](x0, eps, level.alpha, level.sigma, before=before)
    rounding = 2e-6 * (1 + np.abs(x) / level.sigma)
    found = (x0 - skip[:, None] * x) / out[:, None]
    assert (np.abs(found - target) < rounding * (1 + np.abs(target))).all()
    back = skip[:, None] * x + out[:, None] * target
    if name == "mu":  # 1 / out is the weight of x_0, which few of the steps give much of
        rounding = 2e-5 * (1 + np.abs(x)) * np.maximum(1, np.abs(out[:, None]))
    else:
        rounding = 2e-6 * (1 + np.abs(x) / np.maximum(level.alpha, 1e-6))
    assert (np.abs(back - x0) < rounding).all()
    if name == "trig_flow":
        np.testing.assert_allclose(time, np.arctan2(level.sigma, DATA * level.alpha)[:, 0], rtol=1e-5)
    elif name != "edm":
        np.testing.assert_array_equal(inner, np.ones(len(TIMES)))
        np.testing.assert_array_equal(time, TIMES - 1)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_denoiser_of_an_exact_network_returns_x0(name):
    """The network receives the scaled input and the time of each example, and predicts the target."""
    schedule = SCHEDULES["linear"]
    rng = np.random.default_rng(1)
    x0, eps = rng.uniform(-1, 1, (3, 4)), rng.normal(size=(3, 4))
    noise, before = schedule(300.0), schedule(299.0)
    _, _, scale, time = coefficients(name, noise, schedule)
    x = noise.alpha * x0 + noise.sigma * eps

    def network(scaled, times):
        np.testing.assert_allclose(scaled, scale * x, rtol=1e-6)
        np.testing.assert_allclose(times, np.full(3, time))
        return jnp.asarray(TARGETS[name](x0, eps, noise.alpha, noise.sigma, before=before))

    options = {"schedule": schedule} if name == "mu" else {}
    denoise = from_network(network, functools.partial(choices(parameterizations)[name], **options))
    np.testing.assert_allclose(denoise(x, noise).x0, x0, atol=5e-4 if name == "mu" else 1e-5)


def test_v_equals_salimans_and_ho_if_variance_is_preserved():
    """x_0 = alpha x - sigma v: app. D."""
    noise = noise_schedules.cosine(1000)(TIMES)
    skip, out, _, _ = coefficients("v", noise)
    np.testing.assert_allclose(skip, noise.alpha, rtol=1e-6)
    np.testing.assert_allclose(out, -noise.sigma, rtol=1e-6)


def test_flow_of_a_rectified_flow_is_the_velocity():
    """x_0 = x_t - t v where alpha = 1 - t."""
    noise = noise_schedules.rectified_flow(1000)(TIMES)
    skip, out, _, _ = coefficients("flow", noise)
    np.testing.assert_allclose(skip, np.ones(len(TIMES)), rtol=1e-6)
    np.testing.assert_allclose(out, -TIMES / 1000, rtol=1e-6)


@pytest.mark.parametrize("data", [0.5, 1.3])
def test_edm_equals_the_papers_table_1(data):
    sigma = np.array([0.002, 0.1, 0.5, 1.0, 7.0, 80.0])
    noise = Noise(jnp.ones(6), jnp.ones(6), jnp.asarray(sigma, jnp.float32))
    skip, out, inner, time = map(np.asarray, parameterizations.edm(noise, sigma_data=data))
    np.testing.assert_allclose(skip, data**2 / (sigma**2 + data**2), rtol=1e-6)
    np.testing.assert_allclose(out, sigma * data / np.sqrt(sigma**2 + data**2), rtol=1e-6)
    np.testing.assert_allclose(inner, 1 / np.sqrt(sigma**2 + data**2), rtol=1e-6)
    np.testing.assert_allclose(time, np.log(sigma) / 4, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_consistency_equals_the_papers_appendix_c(alpha):
    """Coefficients of x_t / alpha at sigma / alpha; at sigma_min the network has no effect."""
    sigma = np.array([0.01, 0.1, 0.5, 1.0, 7.0, 80.0])
    noise = Noise(jnp.ones(6), jnp.full(6, alpha), jnp.asarray(alpha * sigma, jnp.float32))
    skip, out, inner, time = map(np.asarray, parameterizations.consistency(noise, sigma_data=0.7, sigma_min=0.004))
    np.testing.assert_allclose(alpha * skip, 0.7**2 / ((sigma - 0.004) ** 2 + 0.7**2), rtol=1e-6)
    np.testing.assert_allclose(out, (sigma - 0.004) * 0.7 / np.sqrt(sigma**2 + 0.7**2), rtol=1e-5)
    np.testing.assert_allclose(alpha * inner, 1 / np.sqrt(sigma**2 + 0.7**2), rtol=1e-6)
    np.testing.assert_allclose(time, np.log(sigma) / 4, rtol=1e-6, atol=1e-7)


def test_consistency_returns_its_input_at_the_boundary():
    for schedule in (noise_schedules.edm(40), noise_schedules.edm(40, continuous=True)):
        first = schedule(schedule.first)
        denoise = from_network(lambda x, time: jnp.full_like(x, 1e3), parameterizations.consistency)
        np.testing.assert_allclose(denoise(jnp.linspace(-1, 1, 5), first).x0, np.linspace(-1, 1, 5), atol=1e-5)


def test_the_time_input_of_openais_consistency_networks():
    """Song et al. 2023, code: 250 log(sigma) in the place of EDM's log(sigma) / 4."""
    noise = noise_schedules.edm(40)(np.arange(1.0, 41))
    for make in (parameterizations.edm, parameterizations.consistency):
        np.testing.assert_allclose(make(noise, time_scale=1000.0).time, 250 * np.log(noise.sigma), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_edm_has_unit_variances_for_gaussian_data(schedule):
    """Karras et al. 2022, app. B.6: input and target, at any alpha."""
    noise = schedule(TIMES)
    skip, out, inner, time = coefficients("edm", noise)
    alpha, sigma = (np.asarray(leaf, np.float64) for leaf in noise[1:])
    np.testing.assert_allclose(inner**2 * (alpha**2 * DATA**2 + sigma**2), np.ones(6), rtol=1e-6)
    target = ((1 - skip * alpha) / out * DATA) ** 2 + (skip * sigma / out) ** 2
    np.testing.assert_allclose(target, np.ones(6), rtol=2e-4)  # 1 - skip alpha cancels near the image
    np.testing.assert_allclose(time, np.log(sigma / alpha) / 4, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "schedule", [noise_schedules.linear(1000), noise_schedules.scaled_linear(1000)], ids=["linear", "scaled"]
)
def test_mu_equals_ddpm(schedule):
    """Eq. 7 of Ho et al. 2020 in its own letters."""
    beta = np.linspace(1e-4, 0.02, 1000)
    if schedule(1000.0).alpha > 0.05:
        beta = np.linspace(8.5e-4**0.5, 0.012**0.5, 1000) ** 2
    bar = np.cumprod(1 - beta)
    t = np.array([2, 3, 500, 1000])
    beta, now, before = beta[t - 1], bar[t - 1], bar[t - 2]
    rng = np.random.default_rng(0)
    x0, x = rng.uniform(-1, 1, 4), rng.normal(size=4)
    mean = np.sqrt(before) * beta / (1 - now) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - now) * x
    skip, out, _, _ = coefficients("mu", schedule(t.astype(float)), schedule)
    np.testing.assert_allclose((x0 - skip * x) / out, mean, atol=1e-4)
    np.testing.assert_allclose(1 / out, np.sqrt(before) * beta / (1 - now), rtol=1e-3)


@pytest.mark.parametrize(
    "zero", [noise_schedules.rectified_flow(50), noise_schedules.cosine(50).with_zero_terminal_snr()]
)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_only_eps_is_undefined_without_signal(name, zero):
    last = zero(50.0)
    assert last.alpha == 0
    found = coefficients(name, last, zero)
    assert np.isfinite(found).all() == (name != "eps")
    if name in ("x0", "v", "edm"):  # x_t = eps does not depend on x_0; a flow predicts relative to it
        assert found[0] == 0


@pytest.mark.parametrize("name", ["rectified_flow", "edm"])
def test_the_time_of_edm_stops_before_the_signal_does(name):
    """On a schedule without signal at T its value there is that of 0.999 T; elsewhere it is log(sigma / alpha) / 4."""
    schedule = choices(noise_schedules)[name](1000, continuous=True)
    noise = schedule(np.array([1.0, 500.0, 999.0, 999.9, 1000.0]))
    alpha, sigma = (np.asarray(leaf, np.float64) for leaf in noise[1:])
    level = sigma / alpha if name == "edm" else np.array([1 / 999, 1, 999, 999, 999])
    times = parameterizations.edm(noise, schedule=schedule).time, parameterizations.consistency(noise).time
    np.testing.assert_allclose(times[0], np.log(level) / 4, rtol=1e-4, atol=1e-6)
    same = slice(2) if name == "rectified_flow" else slice(5)
    np.testing.assert_array_equal(times[0][same], times[1][same])  # to the bit, without the schedule


def test_coefficients_at_the_clean_level_are_finite():
    """x0_hat = x at the clean image, for all that speak of it."""
    clean = noise_schedules.cosine(50)(0.0)
    for name in ("eps", "v", "flow", "edm", "consistency"):
        skip, out, _, time = coefficients(name, clean)
        assert (skip, out) == (1, 0)
        assert np.isfinite(time)
