"""Losses against NumPy in float64, and against the closed forms of the bound on Gaussian data."""

import functools
import inspect

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy import integrate, stats

from diffjax.diffusion import loss_weighting, losses, noise_schedules, parameterizations, variance
from diffjax.diffusion.noise import Noise
from diffjax.diffusion.noise_schedules import Discrete
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.registry import choices
from tests import tiny
from tests.diffusion.closed_forms import decoder, discrete, kl

MEAN, STD = 0.1, 0.3  # of Gaussian data
RNG = np.random.default_rng(0)
T = 20
TIMES = np.tile(np.arange(1.0, T + 1), 6)  # every time for every parameterization, so that programs have one shape
SHAPE = (6 * T, 2, 3)
X0 = np.float32(-1 + 2 / 255 * RNG.integers(0, 256, SHAPE))
EPS, F, SPREAD = (np.float32(RNG.normal(size=SHAPE)) for _ in range(3))

PREDICTIONS = {  # x_0-hat from (x, F, alpha, sigma, and alpha, sigma of the level before)
    "eps": lambda x, f, a, s, *_: (x - s * f) / a,
    "x0": lambda x, f, *_: f,
    "v": lambda x, f, a, s, *_: (a * x - s * f) / (a**2 + s**2),
    "flow": lambda x, f, a, s, *_: (x - s * f) / (a + s),
    "edm": lambda x, f, a, s, *_: a * 0.25 * x / (s**2 + a**2 * 0.25) + s * 0.5 * f / np.sqrt(s**2 + a**2 * 0.25),
    "mu": lambda x, f, a, s, a2, s2: (f - a / a2 * (s2 / s) ** 2 * x) * s**2 / (a2 * (s**2 - (a / a2 * s2) ** 2)),
}
WEIGHTS = {
    "snr": lambda a, s: (a / s) ** 2,
    "truncated_snr": lambda a, s: np.maximum((a / s) ** 2, 1),
    "min_snr": lambda a, s: np.minimum((a / s) ** 2, 5),
    "p2": lambda a, s: (a / s) ** 2 / (1 + (a / s) ** 2),
    "edm": lambda a, s: (a / s) ** 2 + 4,
}


def coefficients(name, schedule, noise):
    """Returns the coefficients of a parameterization, which may require the schedule."""
    function = choices(parameterizations)[name]
    process_options = {"schedule": schedule} if "schedule" in inspect.signature(function).parameters else {}
    return function(noise, **process_options)


def noised(schedule, names, x0=X0, eps=EPS, output=F, spread=SPREAD, times=TIMES):
    """Returns a noised batch, in equal parts by parameterization, and its prediction."""
    times = jnp.asarray(times, jnp.float32)
    parts = [coefficients(n, schedule, schedule(t)) for n, t in zip(names, jnp.split(times, len(names)), strict=True)]
    c = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    noise = schedule(times)
    alpha, sigma = (np.asarray(v).reshape(-1, *[1] * (x0.ndim - 1)) for v in noise[1:])
    arrays = [jnp.asarray(v) for v in (x0, eps, alpha * x0 + sigma * eps)]
    prediction = losses.Prediction(jnp.asarray(output), c, (jnp.asarray(spread) + 1) / 2)
    return NoisedBatch(*arrays, noise, jnp.ones(len(x0))), prediction


def per_example(x):
    return x.reshape(len(x), -1).mean(axis=1)


def tables(schedule):
    """(alpha, sigma), float64 [T + 1] of times 0, ..., T."""
    levels = schedule(jnp.arange(schedule.timesteps + 1.0))
    return np.asarray(levels.alpha, np.float64), np.asarray(levels.sigma, np.float64)


SCHEDULES = {
    "linear": noise_schedules.linear(T),
    "cosine": noise_schedules.cosine(T),
    "rectified_flow": noise_schedules.rectified_flow(T),  # without signal at T
    "edm": noise_schedules.edm(T, sigma_min=0.1, sigma_max=8.0),
}
NAMES = {name: tuple(PREDICTIONS) for name in SCHEDULES}
NAMES["rectified_flow"] = ("x0", *tuple(PREDICTIONS)[1:])  # eps has no value at its last level


@functools.cache
def drawn(name):
    return noised(SCHEDULES[name], NAMES[name])


def prediction(name):
    """(x_0-hat, x_t), float64."""
    alpha, sigma = (table.reshape(-1, 1, 1) for table in tables(SCHEDULES[name]))
    x = np.asarray(drawn(name)[0].x, np.float64)
    parts = zip(NAMES[name], np.split(x, 6), np.split(np.float64(F), 6), strict=True)
    x0_hat = [PREDICTIONS[n](x, f, alpha[1:], sigma[1:], alpha[:-1], sigma[:-1]) for n, x, f in parts]
    return np.concatenate(x0_hat), x


@jax.jit
def mse(batch, prediction):
    """Returns the loss by weighting."""
    return {
        name: losses.mse(batch, prediction, weighting=choices(loss_weighting)[name]) for name in ("simple", *WEIGHTS)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_mse_is_the_weighted_error_of_x0(name):
    alpha, sigma = (np.tile(table[1:], 6) for table in tables(SCHEDULES[name]))
    error = per_example((prediction(name)[0] - np.float64(X0)) ** 2)
    loss = mse(*drawn(name))
    for weight, expected in WEIGHTS.items():
        np.testing.assert_allclose(loss[weight], expected(alpha, sigma) * error, rtol=2e-3, atol=1e-6, err_msg=weight)


def test_simple_mse_is_the_error_of_the_networks_output():
    loss = np.split(np.asarray(mse(*drawn("linear"))["simple"]), 6)
    for i, target in ((0, EPS), (1, X0)):
        assert NAMES["linear"][i] == ("eps", "x0")[i]
        np.testing.assert_allclose(loss[i], np.split(per_example((F - target) ** 2), 6)[i], rtol=1e-3)


# The bound of a discrete schedule.


def exact_terms(name):
    """(the term at each time, the prior) of every example, in bits, by eq. 5 of DDPM with a learned variance."""
    alpha, sigma = (table.reshape(-1, 1, 1) for table in tables(SCHEDULES[name]))
    a, s, a2, s2 = (np.tile(v, (6, 1, 1)) for v in (alpha[1:], sigma[1:], alpha[:-1], sigma[:-1]))
    x0_hat, x = prediction(name)
    x0, first = np.float64(X0), TIMES == 1
    large = s**2 - (a / a2 * s2) ** 2
    small = large * s2**2 / s**2
    small[first] = small[TIMES == 2]  # of the step before, as the last has none
    share = (np.float64(SPREAD) + 1) / 2
    std = np.exp((share * np.log(large) + (1 - share) * np.log(small)) / 2)
    means = [(a / a2 * s2**2 * x + a2 * large * clean) / s**2 for clean in (x0, x0_hat)]
    terms = kl(means[0], small, means[1], std**2) / np.log(2)
    terms[first] = decoder(X0[first], x0_hat[first], std[first])
    unit = alpha[-1] ** 2 + sigma[-1] ** 2
    return per_example(terms), per_example(kl(alpha[-1] * x0, sigma[-1] ** 2, 0, unit)) / np.log(2)


@jax.jit
def learned_vlb(batch, prediction, alphas, sigmas):
    return losses.vlb(batch, prediction, schedule=discrete(alphas, sigmas), variance=variance.learned_range)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_vlb_over_all_times_is_the_bound(name):
    """T times each term, plus the prior: the mean over times is their sum, for every parameterization."""
    vlb = learned_vlb(*drawn(name), *SCHEDULES[name].tables[:2])
    terms, prior = exact_terms(name)
    np.testing.assert_allclose(vlb, T * terms + prior, rtol=5e-3)
    means = np.mean(np.split(np.asarray(vlb, np.float64), 6), axis=1)
    whole = np.sum(np.split(terms, 6), axis=1) + np.mean(np.split(prior, 6), axis=1)
    np.testing.assert_allclose(means, whole, rtol=2e-3)


def test_vlb_of_one_step_is_prior_and_decoder():
    schedule, times = noise_schedules.linear(1), np.ones(6 * T)
    one = noised(schedule, ["x0"], times=times)
    alpha, sigma = (table[1] for table in tables(schedule))
    prior = per_example(kl(alpha * np.float64(X0), sigma**2, 0, 1)) / np.log(2)
    expected = prior + per_example(decoder(X0, F, sigma))
    functions = (variance.fixed_small, variance.fixed_large)
    for vlb in jax.jit(lambda *one: [losses.vlb(*one, schedule=schedule, variance=f) for f in functions])(*one):
        np.testing.assert_allclose(vlb, expected, rtol=1e-3)


def test_hybrid_trains_the_mean_by_mse_and_the_variance_by_the_bound():
    """Improved DDPM, eq. 16: a stop-gradient in the bound."""
    process_options = {"schedule": SCHEDULES["cosine"], "variance": variance.learned_range}
    batch, prediction = drawn("cosine")

    def gradient(loss):
        def total(output, interpolation):
            values = loss(batch, prediction._replace(output=output, variance_interpolation=interpolation))
            return jnp.sum(values), values

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(prediction.output, prediction.variance_interpolation)

    hybrid, loss = gradient(
        lambda *t: losses.hybrid(*t, weighting=loss_weighting.simple, vlb_weight=0.02, **process_options)
    )
    mse, _ = gradient(lambda *t: losses.mse(*t, weighting=loss_weighting.simple))
    vlb, _ = gradient(lambda *t: losses.vlb(*t, **process_options))
    np.testing.assert_allclose(hybrid[0], mse[0], rtol=1e-5)
    of_eps = slice(0, T)
    np.testing.assert_allclose(hybrid[0][of_eps], 2 * (F - EPS)[of_eps] / 6, rtol=5e-3, atol=1e-4)  # of 6 dimensions
    np.testing.assert_allclose(hybrid[1], 0.02 * vlb[1], rtol=1e-4, atol=1e-7)
    assert np.all(np.abs(vlb[0]) > 0) and np.all(np.abs(hybrid[1]) > 0)
    terms, prior = exact_terms("cosine")
    expected = per_example((F - EPS) ** 2) + 0.02 * (T * terms + prior)
    np.testing.assert_allclose(loss[of_eps], expected[of_eps], rtol=5e-3)


# The continuous bound on Gaussian data: an integral of the least error of x_0 given x_t over SNR.


def gaussian_bound(alpha, sigma):
    """The closed form of half the integral, bits, of levels that fall to (alpha, sigma)[0] from [1]."""
    low, high = (np.log1p(STD**2 * (a / s) ** 2) for a, s in zip(alpha, sigma, strict=True))
    return (high - low) / (2 * np.log(2))


def ends(schedule):
    levels = schedule(jnp.array([schedule.timesteps, schedule.first]))
    return np.asarray(levels.alpha, np.float64), np.asarray(levels.sigma, np.float64)


def best_prediction(levels, x0, eps):
    """With the network that predicts E[x_0 | x_t] itself."""
    alpha, sigma = (np.asarray(v, np.float64)[:, None] for v in levels[1:])
    x = alpha * x0 + sigma * eps
    x0_hat = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
    zero = np.zeros(len(x0), np.float32)
    arrays = (np.float32(v) for v in (x0, eps, x))
    coefficients = parameterizations.Coefficients(zero, zero + 1, zero + 1, zero)
    return NoisedBatch(*arrays, levels, zero + 1), losses.Prediction(x0_hat, coefficients)


CONTINUOUS = {
    "cosine": noise_schedules.cosine(1000, continuous=True),
    "linear": noise_schedules.linear(1000, continuous=True),
    "rectified_flow": noise_schedules.rectified_flow(1000, continuous=True),
    "edm": noise_schedules.edm(1000, continuous=True, sigma_min=0.01),
    "learned": noise_schedules.learned(1000, continuous=True, gamma_min=-9.0, gamma_max=4.0),
}
NODES, NODE_WEIGHTS = (v.astype(np.float64) for v in np.polynomial.hermite_e.hermegauss(32))


@pytest.mark.parametrize("name", sorted(CONTINUOUS))
def test_the_continuous_vlb_is_an_integral_over_snr(name):
    """Integrates over times, noise and data by quadrature; the error is quadratic in both, so few nodes suffice."""
    schedule = CONTINUOUS[name]
    edges = np.linspace(np.log(schedule.first), np.log(schedule.timesteps), 101)  # of log t: SNR is a power there
    nodes, node_weights = np.polynomial.legendre.leggauss(5)
    log_t = ((edges[1:] + edges[:-1]) / 2)[:, None] + np.diff(edges)[:, None] / 2 * nodes
    share = np.diff(edges)[:, None] / 2 * node_weights * np.exp(log_t) / (schedule.timesteps - schedule.first)
    times, share = np.exp(log_t).ravel(), share.ravel()
    grid = np.meshgrid(np.arange(len(times)), [-1.0, 1.0], np.arange(32), indexing="ij")
    which, side, node = (g.ravel() for g in grid)
    weights = share[which] / 2 * (NODE_WEIGHTS / NODE_WEIGHTS.sum())[node]
    times, x0, eps = times[which], np.float32(MEAN + STD * side)[:, None], np.float32(NODES[node])[:, None]
    levels = jax.jit(schedule)(jnp.asarray(times, jnp.float32))
    trials = best_prediction(levels, x0, eps)
    vlb = np.asarray(jax.jit(functools.partial(losses.vlb, schedule=schedule, variance=None))(*trials), np.float64)

    alpha, sigma = ends(schedule)
    std = sigma[1] / alpha[1]
    at_first = integrate.quad(lambda z: stats.norm.pdf(z) * decoder(z * std, 0.0, std), -8, 8)[0]
    unit = alpha[0] ** 2 + sigma[0] ** 2
    prior = (kl(0, sigma[0] ** 2, 0, unit) + alpha[0] ** 2 * (MEAN**2 + STD**2) / (2 * unit)) / np.log(2)
    np.testing.assert_allclose(np.sum(weights), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.sum(weights * vlb), gaussian_bound(alpha, sigma) + at_first + prior, atol=2e-3)


def test_the_continuous_vlb_is_the_limit_of_the_discrete():
    """With more levels between the same ends, the sum of terms is a finer Riemann sum of the integral."""
    continuous = CONTINUOUS["rectified_flow"]
    limit = gaussian_bound(*ends(continuous))
    errors = []
    for steps in (250, 500, 1000):
        u = np.geomspace(1e-3, 1.0, steps)
        schedule = Discrete.from_levels(1 - u, u)
        which, side, sign = (g.ravel() for g in np.meshgrid(np.arange(steps), [-1, 1], [-1, 1], indexing="ij"))
        levels = Noise(*(np.float32(v[which]) for v in (np.arange(1, steps + 1), 1 - u, u)))
        trials = best_prediction(levels, np.float32(MEAN + STD * side)[:, None], np.float32(sign)[:, None])
        loss = functools.partial(losses.vlb, schedule=schedule, variance=variance.fixed_small)
        vlb = np.asarray(jax.jit(loss)(*trials), np.float64).reshape(steps, 4).mean(axis=1)  # quadratic in both
        snr = ((1 - u) / u) ** 2
        left = STD**2 / (1 + STD**2 * snr)  # variance of x_0 given x_t
        terms = vlb[1:] / steps  # the prior's is zero
        np.testing.assert_allclose(terms, -np.diff(snr) * left[1:] / (2 * np.log(2)), rtol=1e-2, atol=1e-6)
        errors.append(terms.sum() - limit)
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2.0, rtol=0.05)
    assert abs(2 * errors[2] - errors[1]) < 2e-3 < errors[2]


# Finite values at both ends of every process.


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, continuous, zero_terminal",
    tiny.thinned(sorted(choices(noise_schedules)), (False, True), (False, True)),
)
def test_gradients_are_finite_at_both_ends(name, continuous, zero_terminal):
    """Gradients of all parameterizations by output, variance, data and parameters of the schedule."""
    zero_terminal = zero_terminal and name != "learned"  # which raises
    schedule = choices(noise_schedules)[name](1000, continuous=continuous)
    params = schedule.init(8) if name == "learned" else {}
    schedule = schedule.with_zero_terminal_snr() if zero_terminal else schedule
    near = 999.9 if continuous else 999.0  # training samples times that near to the end
    times = np.tile([schedule.first, near, schedule.timesteps, schedule.timesteps / 2], 30)
    has_value = {"eps": float(schedule(times[2]).alpha) > 0, "mu": not continuous}
    names = [n if has_value.get(n, True) else "x0" for n in PREDICTIONS]
    batch, prediction = noised(schedule, names, times=times)

    def total(output, interpolation, x0, params):
        process = schedule.bind(params) if params else schedule
        noise = process(batch.noise.t)
        x = noise.alpha[:, None, None] * x0 + noise.sigma[:, None, None] * EPS
        one = (
            batch._replace(x0=x0, x=x, noise=noise),
            prediction._replace(output=output, variance_interpolation=interpolation),
        )
        values = {"vlb": losses.vlb(*one, schedule=process, variance=variance.learned_range)}
        if not params:
            values["mse"] = losses.mse(*one, weighting=loss_weighting.simple)
        return sum(map(jnp.sum, values.values())), values

    arguments = (prediction.output, prediction.variance_interpolation, batch.x0, params)
    gradients, values = jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))(*arguments)
    for loss, value in values.items():
        assert np.isfinite(value).all(), (loss, times[~np.isfinite(value)])
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
    assert np.all(np.abs(gradients[0]).max(axis=(1, 2))[times == schedule.timesteps / 2] > 0)
    if not continuous:
        assert np.all(np.abs(gradients[1]).max(axis=(1, 2))[times == schedule.timesteps / 2] > 0)


def test_losses_are_per_example():
    """A permutation of the batch permutes the loss."""
    order = np.random.default_rng(2).permutation(6 * T)
    permuted = jax.tree.map(lambda leaf: leaf[order], drawn("cosine"))
    np.testing.assert_allclose(mse(*permuted)["min_snr"], mse(*drawn("cosine"))["min_snr"][order], rtol=1e-5)
    tables = SCHEDULES["cosine"].tables[:2]
    np.testing.assert_allclose(
        learned_vlb(*permuted, *tables), learned_vlb(*drawn("cosine"), *tables)[order], rtol=1e-5
    )
