"""Gaussian latents against SciPy's densities, quadrature and Monte Carlo."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy import integrate, stats

from diffjax.latents import gaussian
from diffjax.latents.gaussian import Gaussian

draw, kl, log_density = jax.jit(gaussian.sample), jax.jit(gaussian.kl), jax.jit(gaussian.log_density)
CASES = [(0.0, 0.0), (1.5, 0.0), (-0.7, -3.0), (0.3, 1.2)]


def example(shape=(3, 2, 2, 4), seed=0):
    return Gaussian(*np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32))


@pytest.mark.parametrize(("mean", "log_variance"), CASES)
def test_kl_equals_the_integral(mean, log_variance):
    q, p = stats.norm(mean, np.exp(log_variance / 2)), stats.norm()
    expected, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), *q.interval(1 - 1e-14))
    found = kl(Gaussian(jnp.full((1, 1), mean), jnp.full((1, 1), log_variance)))
    np.testing.assert_allclose(found, [[expected]], atol=1e-6)


def test_kl_equals_the_mean_log_ratio_of_samples():
    q, count = example((1, 2, 2, 3)), 40_000
    many = Gaussian(*(np.repeat(x, count, 0) for x in q))
    z = draw(jax.random.split(jax.random.key(0), count), many)
    prior = Gaussian(np.zeros_like(z), np.zeros_like(z))
    ratio = np.asarray(log_density(z, many) - log_density(z, prior))
    assert abs(ratio.mean() - float(kl(q).sum())) < 4 * ratio.std() / np.sqrt(count)


def test_samples_have_the_moments_of_the_distribution():
    q, count = example((1, 2, 3)), 40_000
    many = Gaussian(*(np.repeat(x, count, 0) for x in q))
    z = np.asarray(draw(jax.random.split(jax.random.key(1), count), many))
    deviation = np.exp(q.log_variance[0] / 2)
    standard = ((z - q.mean) / deviation).reshape(count, -1)
    np.testing.assert_allclose(standard.mean(0), 0, atol=4.5 / np.sqrt(count))
    covariance = standard.T @ standard / count
    np.testing.assert_allclose(covariance, np.eye(6), atol=4.5 * np.sqrt(2 / count))
    assert stats.kstest(standard[:, 0], "norm").pvalue > 1e-4


def test_samples_are_reparameterised_and_depend_only_on_their_keys():
    q, keys = example(), jax.random.split(jax.random.key(2), 3)
    z = draw(keys, q)
    other = draw(keys[::-1], Gaussian(*(x[[0, 1, 0]] for x in q)))
    np.testing.assert_array_equal(other[1], z[1])
    gradient = jax.jit(jax.grad(lambda q: draw(keys, q).sum()))(q)
    np.testing.assert_allclose(gradient.mean, np.ones_like(z))
    np.testing.assert_allclose(gradient.log_variance, (z - q.mean) / 2, atol=1e-6)


def test_split_keeps_the_extremes_finite():
    output = np.float32([[0.5, -2.0, -1e4, 1e4], [3.0, 4.0, -1.0, 2.0]])
    q = gaussian.split(output)
    np.testing.assert_array_equal(q.mean, output[:, :2])
    np.testing.assert_array_equal(q.log_variance[1], output[1, 2:])
    assert np.isfinite(kl(q)).all() and np.isfinite(draw(jax.random.split(jax.random.key(0), 2), q)).all()


@pytest.mark.parametrize("shape", [(3, 2, 2, 4), (3, 4)])
@pytest.mark.parametrize("bits", [0.0, 0.5, 3.0])
def test_free_bits_bound_each_channel_below(shape, bits):
    kl = np.random.default_rng(0).exponential(0.5, shape).astype(np.float32)
    expected = np.zeros(3)
    for b in range(3):
        for c in range(4):
            expected[b] += max(np.float64(kl[b, ..., c]).sum(), bits * np.log(2))
    np.testing.assert_allclose(jax.jit(gaussian.with_free_bits)(kl, bits), expected, rtol=1e-6)


def test_channels_below_free_bits_have_no_gradient():
    kl = np.zeros((2, 2, 2, 3), np.float32)
    kl[0, ..., 0], kl[1, ..., 2] = 1.0, 0.1  # 4 and 0.4 nats of a channel; 2 bits are 1.39
    gradient = jax.jit(jax.grad(lambda kl: gaussian.with_free_bits(kl, 2.0).sum()))(kl)
    expected = np.zeros_like(kl)
    expected[0, ..., 0] = 1
    np.testing.assert_array_equal(gradient, expected)


def test_log_density_equals_scipy():
    q, z = example(), np.random.default_rng(3).normal(size=(3, 2, 2, 4)).astype(np.float32)
    expected = stats.norm.logpdf(z, q.mean, np.exp(np.float64(q.log_variance) / 2)).sum((1, 2, 3))
    np.testing.assert_allclose(log_density(z, q), expected, rtol=1e-5)
