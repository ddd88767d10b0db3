"""Likelihoods of images against SciPy's distributions, their sums and integrals."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy import integrate, special, stats

from diffjax.latents import output_distributions

LOGISTIC = output_distributions.logistic()
LEVELS = np.float32(np.arange(256) / 127.5 - 1)
SETTINGS = [(0.0, -2.0), (0.3, -4.5), (-1.0, -3.0), (1.7, 0.5), (-30.0, -7.0), (0.0, -7.0), (0.1, -50.0), (0.5, 50.0)]


@functools.partial(jax.jit, static_argnums=0)
def of_levels(nll, *parameters):
    """-log p of each of the 256 levels, and the gradients of their mean by each parameter."""

    def each(*parameters):
        output = jnp.broadcast_to(jnp.stack(parameters)[None, None, None, None], (256, 1, 1, 1, len(parameters)))
        return nll(LEVELS[:, None, None, None], output)

    return each(*parameters), jax.grad(lambda *at: each(*at).mean(), range(len(parameters)))(*parameters)


@pytest.mark.parametrize(("mean", "log_scale"), SETTINGS)
def test_logistic_is_a_distribution_over_the_levels(mean, log_scale):
    """Includes log-scales outside [-7, 7] and means outside the range."""
    found = np.float64(of_levels(LOGISTIC.nll, mean, log_scale)[0])
    np.testing.assert_allclose(np.exp(-found).sum(), 1, atol=2e-5)
    cdf = stats.logistic(mean, np.exp(np.clip(log_scale, -7, 7)))
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])
    low = edges[1:] < mean  # there the cdf is precise, elsewhere its complement
    p = np.where(low, np.diff(cdf.cdf(edges)), -np.diff(cdf.sf(edges)))
    is_resolved = p > 1e-300  # by float64
    np.testing.assert_allclose(found[is_resolved], -np.log(p[is_resolved]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("mean", "log_scale"), SETTINGS)
def test_logistic_gradients_are_finite_and_equal_differences(mean, log_scale):
    _, gradient = of_levels(LOGISTIC.nll, mean, log_scale)
    assert np.isfinite(gradient).all()
    if abs(log_scale) < 7:
        for i, found in enumerate(gradient):
            step = 1e-2 * np.eye(2)[i]
            ends = [np.float64(of_levels(LOGISTIC.nll, *(np.array([mean, log_scale]) + d))[0]) for d in (step, -step)]
            np.testing.assert_allclose(found, (ends[0] - ends[1]).mean() / 2e-2, rtol=0.02, atol=2e-2)


@pytest.mark.parametrize(("mean", "log_scale"), [(0.1, -4.0), (0.9, -1.5), (-1.2, -2.0)])
def test_logistic_samples_have_the_distributions_frequencies(mean, log_scale):
    count = 40_000
    output = np.broadcast_to(np.float32([mean, log_scale]), (count, 1, 1, 1, 2))
    x = np.asarray(jax.jit(LOGISTIC.sample)(jax.random.split(jax.random.key(0), count), output)).ravel()
    levels = np.round((x + 1) * 127.5).astype(int)
    np.testing.assert_allclose(x, LEVELS[levels], atol=1e-6)
    expected = count * np.exp(-np.float64(of_levels(LOGISTIC.nll, mean, log_scale)[0]))
    found = np.bincount(levels, minlength=256)
    often = expected > 8
    assert found[~often].sum() <= expected[~often].sum() + 6 * np.sqrt(expected[~often].sum() + 1)
    score = ((found - expected) ** 2 / expected)[often].sum()
    assert stats.chi2.sf(score, often.sum()) > 1e-4


def test_logistic_is_the_mean_over_values_and_its_mean_stays_in_range():
    rng = np.random.default_rng(0)
    x = LEVELS[rng.integers(0, 256, (2, 3, 3, 2))]
    output = rng.normal(0, 1, (2, 3, 3, 2, 2)).astype(np.float32)
    nll = jax.jit(LOGISTIC.nll)
    each = np.reshape(nll(x.reshape(-1, 1, 1, 1), output.reshape(-1, 1, 1, 1, 2)), (2, -1))
    np.testing.assert_allclose(nll(x, output), each.mean(1), rtol=1e-5)
    np.testing.assert_array_equal(LOGISTIC.mean(output), np.clip(output[..., 0], -1, 1))
    assert LOGISTIC.exact and LOGISTIC.parameters == 2


LAPLACE = {epsilon: output_distributions.logit_laplace(epsilon=epsilon) for epsilon in (0.1, 0.02)}


@pytest.mark.parametrize("epsilon", LAPLACE)
@pytest.mark.parametrize(("location", "log_scale"), [(0.0, 0.0), (1.0, -2.0), (-0.5, 0.7), (0.2, -1.0)])
def test_logit_laplace_is_a_density(epsilon, location, log_scale):
    """The density integrates to 1 over (0, 1); images use [epsilon, 1 - epsilon]."""
    laplace = stats.laplace(location, np.exp(log_scale))
    density = lambda y: laplace.pdf(special.logit(y)) / (y * (1 - y))  # noqa: E731
    places = [0, epsilon, special.expit(location), 1 - epsilon, 1]
    parts = [integrate.quad(density, *ends)[0] for ends in itertools.pairwise(places)]
    assert sum(parts) == pytest.approx(1, abs=1e-6)
    edge = special.logit(1 - epsilon)
    assert sum(parts[1:3]) == pytest.approx(laplace.cdf(edge) - laplace.cdf(-edge), abs=1e-6)

    nll, gradient = of_levels(LAPLACE[epsilon].nll, location, log_scale)
    np.testing.assert_allclose(
        np.exp(-np.float64(nll)), density((1 - 2 * epsilon) * (LEVELS + 1.0) / 2 + epsilon), rtol=2e-4
    )
    assert np.isfinite(gradient).all()


def test_logit_laplaces_scale_is_bounded_below():
    bounded = output_distributions.logit_laplace(min_scale=0.25)
    expected, _ = of_levels(LAPLACE[0.1].nll, 0.3, float(np.log(0.25 + np.exp(-1.0))))
    np.testing.assert_allclose(of_levels(bounded.nll, 0.3, -1.0)[0], expected, rtol=1e-5)
    least, _ = of_levels(LAPLACE[0.1].nll, 0.3, float(np.log(0.25)))
    found, gradient = of_levels(bounded.nll, 0.3, -1e4)
    np.testing.assert_allclose(found, least, rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("epsilon", LAPLACE)
def test_logit_laplaces_mean_is_the_inverse_of_its_map(epsilon):
    mean, draw = jax.jit(LAPLACE[epsilon].mean), jax.jit(LAPLACE[epsilon].sample)
    y = (1 - 2 * epsilon) * (LEVELS + 1.0) / 2 + epsilon
    output = np.stack([special.logit(y), np.zeros_like(y)], -1).astype(np.float32)[:, None, None, None]
    np.testing.assert_allclose(mean(output).ravel(), LEVELS, atol=1e-5)
    np.testing.assert_array_equal(draw(jax.random.split(jax.random.key(0), 256), output), mean(output))
    far = np.resize(np.float32([[-50, 0], [50, 0]]), output.shape)
    np.testing.assert_array_equal(np.reshape(mean(far), (-1, 2)), np.resize([-1, 1], (128, 2)))
    assert LAPLACE[epsilon].parameters == 2 and not LAPLACE[epsilon].exact


def test_errors_are_means_over_values():
    rng = np.random.default_rng(0)
    x, output = rng.normal(size=(2, 4, 4, 3)).astype(np.float32), rng.normal(size=(2, 4, 4, 3, 1)).astype(np.float32)
    difference = np.float64(x) - output[..., 0]
    for likelihood, expected in (
        (output_distributions.l1(), np.abs(difference)),
        (output_distributions.l2(), difference**2),
        (output_distributions.l2(variance=0.25), 4 * difference**2),
    ):
        np.testing.assert_allclose(jax.jit(likelihood.nll)(x, output), expected.mean((1, 2, 3)), rtol=1e-5)
        np.testing.assert_array_equal(likelihood.mean(output), output[..., 0])
        np.testing.assert_array_equal(likelihood.sample(jax.random.split(jax.random.key(0), 2), output), output[..., 0])
        assert likelihood.parameters == 1 and not likelihood.exact
