"""Relaxed codes against hard ones, and their KL against SciPy."""

import jax
import numpy as np
import pytest
from scipy import special, stats

from diffjax.latents import gumbel_softmax

LOGITS = np.random.default_rng(0).normal(0, 2, (4, 3, 2, 6)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 4)
relaxed, kl = jax.jit(gumbel_softmax.sample_relaxed), jax.jit(gumbel_softmax.kl_to_uniform)


def test_temperatures_relax_the_same_perturbed_logits_of_a_key():
    """softmax(y / t), so the logarithms of two temperatures differ by their ratio and a constant."""
    warm = relaxed(KEYS, LOGITS, 1.0)
    for temperature in (0.5, 2.0):
        expected = special.softmax(np.log(np.float64(warm)) / temperature, axis=-1)
        np.testing.assert_allclose(relaxed(KEYS, LOGITS, temperature), expected, atol=1e-5)
    perturbation = np.log(np.float64(warm)) - LOGITS
    assert (perturbation - perturbation.mean(-1, keepdims=True)).std() == pytest.approx(np.pi / np.sqrt(6), rel=0.2)


def test_low_temperature_gives_the_argmax_of_the_perturbed_logits():
    noise = jax.jit(jax.vmap(lambda key: jax.random.gumbel(key, LOGITS.shape[1:])))(KEYS)
    hard = np.argmax(LOGITS + noise, axis=-1)
    cold = relaxed(KEYS, LOGITS, 1e-4)
    np.testing.assert_allclose(cold, np.eye(6)[hard], atol=1e-5)
    assert (hard != LOGITS.argmax(-1)).any()
    others = relaxed(KEYS[::-1], LOGITS[[0, 0, 2, 0]], 1e-4)  # an example depends on its key alone
    np.testing.assert_array_equal(others[2], relaxed(KEYS[::-1], LOGITS, 1e-4)[2])


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_argmax_frequencies_equal_softmax(temperature):
    count, logits = 40_000, np.float32([0.5, -1.0, 2.0, 1.5, 0.0])
    keys = jax.random.split(jax.random.key(1), count)
    codes = relaxed(keys, np.broadcast_to(logits, (count, 1, 1, 5)), temperature).argmax(-1)
    expected = count * np.exp(logits) / np.exp(logits).sum()
    found = np.bincount(np.asarray(codes).ravel(), minlength=5)
    assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-4


def test_rows_are_probabilities_and_gradients_are_finite():
    gradient = jax.jit(jax.grad(lambda x, temperature: (relaxed(KEYS, x, temperature) ** 2).sum()))
    for temperature in (1 / 16, 1.0):
        np.testing.assert_allclose(relaxed(KEYS, LOGITS, temperature).sum(-1), 1, rtol=1e-5)
        assert np.isfinite(gradient(LOGITS, temperature)).all() and np.any(gradient(LOGITS, temperature))


def test_kl_equals_scipy():
    p = np.exp(np.float64(LOGITS)) / np.exp(np.float64(LOGITS)).sum(-1, keepdims=True)
    expected = stats.entropy(p, np.full_like(p, 1 / 6), axis=-1)
    np.testing.assert_allclose(kl(LOGITS), expected, atol=1e-6)


def test_kl_of_extreme_logits():
    """The KL is 0 for uniform codes and log K for certain ones, with finite gradients."""
    extremes = np.float32([[0, 0, 0, 0], [7, 7, 7, 7], [0, 0, 1e4, 0]])[:, None, None]
    np.testing.assert_allclose(kl(extremes)[:, 0, 0], [0, 0, np.log(4)], atol=1e-6)
    assert np.isfinite(jax.jit(jax.grad(lambda x: kl(x).sum()))(extremes)).all()
