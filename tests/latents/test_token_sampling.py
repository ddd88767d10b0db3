"""Filters of logits against a NumPy loop over tokens, and frequencies of samples against probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.latents import token_sampling


def softmax(x):
    p = np.exp(x - x.max())
    return p / p.sum()


def numpy_filtered(logits, temperature, top_k, top_p):
    """Filtered logits of one example, float64."""
    logits = logits.astype(np.float64) / temperature
    best = sorted(range(len(logits)), key=lambda i: -logits[i])  # stable
    remaining = best[: top_k or len(best)]
    if top_p < 1:
        p = dict(zip(remaining, softmax(logits[remaining]), strict=True))
        nucleus, mass = [], 0.0
        while not nucleus or mass < top_p:
            nucleus.append(remaining[len(nucleus)])
            mass += p[nucleus[-1]]
        remaining = nucleus
    return np.array([x if i in remaining else -np.inf for i, x in enumerate(logits)])


SETTINGS = [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.7), (2.0, 4, 0.8), (1.0, 9, 0.3), (0.7, 1, 0.9)]


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 2, (3, 2, 9)).astype(np.float32)


def test_filters_match_numpy_in_one_compilation(logits):
    compiled = jax.jit(lambda x, t, k, p: token_sampling.apply_filters(x, temperature=t, top_k=k, top_p=p))
    for temperature, top_k, top_p in SETTINGS:
        found = compiled(logits, jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))
        rows = [numpy_filtered(row, temperature, top_k, top_p) for row in logits.reshape(-1, 9)]
        np.testing.assert_allclose(found, np.reshape(rows, logits.shape), rtol=1e-6)
    assert compiled._cache_size() == 1


def test_no_setting_changes_nothing(logits):
    compiled = jax.jit(token_sampling.apply_filters)
    for top_k in (0, 9, 1000):
        np.testing.assert_array_equal(compiled(logits, top_k=top_k), logits)
    steep = np.array([0, -30, -40], np.float32)  # the first token has all the probability that float32 can tell
    np.testing.assert_array_equal(compiled(steep, top_p=1.0), steep)


def test_nucleus_ends_with_the_token_that_reaches_the_probability():
    logits, compiled = np.log([0.125, 0.5, 0.125, 0.25]), jax.jit(token_sampling.apply_filters)
    for top_p, remaining in ((0.49, [1]), (0.51, [1, 3]), (0.74, [1, 3]), (0.76, [0, 1, 3]), (0.88, [0, 1, 2, 3])):
        assert np.flatnonzero(np.isfinite(compiled(logits, top_p=top_p))).tolist() == remaining


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"top_p": 0.0}, {"temperature": 1e-6}])
def test_extremes_are_the_argmax(logits, options):
    keys = jax.random.split(jax.random.key(0), 50)
    tokens = jax.jit(jax.vmap(lambda key: token_sampling.sample(key, logits, **options)))(keys)
    np.testing.assert_array_equal(tokens, np.broadcast_to(logits.argmax(-1), tokens.shape))


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}])
def test_the_first_of_equal_logits_is_kept(options):
    tied = np.array([0.0, 2.0, 1.0, 2.0, -np.inf], np.float32)
    remaining = np.isfinite(jax.jit(token_sampling.apply_filters)(tied, **options))
    assert remaining.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("temperature,top_k,top_p", [(1.0, 0, 1.0), (1.5, 4, 0.8)])
def test_frequencies_of_samples(temperature, top_k, top_p, dtype):
    logits = jnp.array([0.5, -1.0, 2.0, 1.5, 0.0, 1.0], dtype)  # bfloat16 has them exactly
    keys = jax.random.split(jax.random.key(0), 40_000)
    one = lambda key: token_sampling.sample(key, logits, temperature=temperature, top_k=top_k, top_p=top_p)  # noqa: E731
    tokens = jax.jit(jax.vmap(one))(keys)
    p = softmax(numpy_filtered(np.asarray(logits, np.float64), temperature, top_k, top_p))
    found = np.bincount(tokens, minlength=6) / len(keys)
    assert (np.abs(found - p) <= 4 * np.sqrt(p * (1 - p) / len(keys))).all()
    assert tokens.dtype == jnp.int32
