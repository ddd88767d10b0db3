"""Codebooks against NumPy: nearest codes, running means, usage, candidates for dead codes, fits to a first batch."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.latents import codebook
from diffjax.latents.quantizers import VectorQuantizer
from tests import tiny


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_nearest_is_the_least_distance_and_of_equal_ones_the_first():
    z, book = normal(3, 4, 2, 5), normal(7, 5, seed=1)
    expected = ((np.float64(z)[..., None, :] - book) ** 2).sum(-1).argmin(-1)
    nearest = jax.jit(codebook.nearest)
    np.testing.assert_array_equal(nearest(z, book), expected)
    np.testing.assert_array_equal(nearest(book, book[[3, 0, 1, 0, 4, 2, 3]])[:4], [1, 2, 5, 0])


def test_nearest_far_from_zero_is_the_least_distance():
    z, book = 1000 + normal(500, 4), 1000 + normal(16, 4, seed=1)
    expected = ((np.float64(z)[:, None] - book) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(jax.jit(codebook.nearest)(z, book), expected)


def test_unit_length_keeps_zero():
    x = normal(3, 4)
    x[1] = 0
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    normalized = jax.jit(codebook.unit_length)
    np.testing.assert_allclose(normalized(x), x / np.where(length > 0, length, 1), rtol=1e-6)
    assert np.isfinite(jax.jit(jax.grad(lambda x: codebook.unit_length(x).sum()))(x)).all()


@pytest.mark.parametrize("ema", [True, False])
def test_initial_statistics_give_the_initial_codebooks(ema):
    books = normal(2, 5, 3)
    memory = codebook.init(jnp.asarray(books), kind="sums" if ema else "shift")
    np.testing.assert_allclose(memory["counts"], np.full((2, 5), 0.2), rtol=1e-6)
    assert not memory["usage"].any() and memory.keys() == {"counts", "usage", "sums" if ema else "shift"}
    if ema:
        np.testing.assert_allclose(codebook.means(memory), books, rtol=1e-6)
    else:
        assert not memory["shift"].any()


def test_without_decay_entries_become_the_means_of_their_latents():
    memory = codebook.init(jnp.asarray(normal(2, 4, 3)), kind="sums")
    inputs, codes = normal(2, 6, 2, 3, seed=1), np.random.default_rng(0).integers(0, 4, (6, 2, 2))
    codes[0, 0] = codes[1, 0] = 0
    codes[2:, 0], codes[0, 1], codes[1, 1], codes[2, 1] = 1, 2, 3, 0
    means = jax.jit(lambda *at: codebook.means(codebook.ema_update(*at, decay=0.0)))(memory, inputs, codes)
    for book in range(2):
        for code in range(4):
            np.testing.assert_allclose(means[book, code], inputs[book][codes[..., book] == code].mean(0), atol=1e-6)


def test_usage_metrics_equal_numpy():
    seen = np.float32([[0.5, 0.5, 0, 0], [3, 0, 0, 0], [1, 1, 1, 1], [0.1, 0.2, 0.3, 0]])
    p = np.float64(seen) / seen.sum(-1, keepdims=True)
    perplexity = np.exp(-np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1))
    np.testing.assert_allclose(perplexity[:3], [2, 1, 4])
    usage = jax.jit(codebook.usage_metrics)
    found = usage(seen)
    np.testing.assert_allclose(found["perplexity"], perplexity.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["codes_used"], (2 + 1 + 4 + 3) / 16, rtol=1e-6)
    assert np.isfinite(usage(jnp.zeros_like(seen))["perplexity"])


def test_usage_restarts_with_each_epoch():
    memory, codes = codebook.init(jnp.asarray(normal(2, 4, 3)), kind="sums"), np.zeros((2, 1, 2, 2), int)
    codes[..., 1] = [[[1, 3]], [[3, 3]]]
    see = jax.jit(lambda memory, epoch: codebook.usage(memory, codes, tiny.moment()._replace(new_epoch=epoch)))
    share = [[1, 0, 0, 0], [0, 0.25, 0, 0.75]]
    for step, times in enumerate([1, 2, 3, 1, 2]):
        memory["usage"] = see(memory, step % 3 == 0)
        np.testing.assert_allclose(memory["usage"], times * np.array(share), rtol=1e-6)


candidates = jax.jit(
    lambda inputs, index, moment_key, size=4096: codebook.restart_candidates(
        inputs, size, index, tiny.moment(batch_size=4)._replace(key=moment_key)
    )
)


def test_candidates_are_uniform_and_independent_between_codebooks():
    inputs = normal(2, 4, 3, 2, 5)
    found = np.asarray(candidates(inputs, jnp.arange(4), jax.random.key(0)))
    for book in range(2):
        pool = inputs[book].reshape(-1, 5)
        same = (found[book][:, None] == pool[None]).all(-1)
        assert same.sum(1).tolist() == [1] * 4096
        np.testing.assert_allclose(same.mean(0), 1 / 24, atol=5 * np.sqrt(1 / 24 / 4096))
    drawn = [(found[book][:, None] == inputs[book].reshape(1, -1, 5)).all(-1).argmax(1) for book in range(2)]
    assert np.mean(drawn[0] == drawn[1]) < 0.1
    assert (candidates(inputs, jnp.arange(4), jax.random.key(1)) != found).any()


def test_mean_of_candidates_of_parts_equals_candidates_of_the_batch():
    inputs, index = normal(1, 4, 2, 2, 3), np.array([2, 0, 3, 1])  # examples in any order
    whole = candidates(inputs, index, jax.random.key(0))
    parts = [candidates(inputs[:, i : i + 2], index[i : i + 2], jax.random.key(0)) for i in (0, 2)]
    np.testing.assert_array_equal((parts[0] + parts[1]) / 2, whole)
    ordered = candidates(inputs[:, np.argsort(index)], jnp.arange(4), jax.random.key(0))
    np.testing.assert_array_equal(ordered, whole)


def distortion(latents, book):
    return ((latents[:, None] - book[None]) ** 2).sum(-1).min(1).mean()


def test_books_from_data():
    latents, rng = normal(200, 3), np.random.default_rng(0)
    drawn = codebook.from_data(rng, latents, 16, centres=False)
    assert drawn.dtype == np.float32 and (drawn[:, None] == latents[None]).all(-1).any(1).all()
    assert len(np.unique(drawn, axis=0)) == 16
    centres = codebook.from_data(rng, latents, 16, centres=True)
    assert centres.shape == (16, 3) and centres.dtype == np.float32
    assert distortion(latents, centres) < 0.8 * distortion(latents, drawn)
    nearest = (
        ((latents[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
    )  # a fixed point of Lloyd's algorithm, or nearly
    means = np.stack([latents[nearest == k].mean(0) for k in range(16)])
    np.testing.assert_allclose(centres, means, atol=0.1)


@pytest.mark.parametrize("centres", [True, False])
@pytest.mark.parametrize("size", [5, 12])
def test_few_latents_all_become_entries(centres, size):
    latents = normal(5, 3)
    book = codebook.from_data(np.random.default_rng(0), latents, size, centres=centres)
    assert book.shape == (size, 3) and len(np.unique(book, axis=0)) == size
    assert distortion(latents, book) == 0
    assert np.sqrt(distortion(book, latents)) < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 1},
        {"depth": 2, "update_rule": "gradient"},
        {"depth": 2, "split": True},
        {"depth": 2, "shared": True},
        {"depth": 1, "update_rule": "gradient", "cosine": True},
        {"depth": 1, "update_rule": "linear"},
    ],
)
def test_fit_reduces_the_quantisation_error(options):
    """Entries from the batch have less error than random ones, and k-means centres less than those."""
    z, error = normal(16, 4, 4, 4, seed=2), {}
    z = z * np.float32([3, 1, 0.3, 2]) + np.float32([5, 0, -2, 0])  # a different distribution from initial codes
    quantizer = VectorQuantizer(4, 8, **options)
    fresh = quantizer.init(jax.random.key(0))
    quantize, lookup = jax.jit(quantizer.quantize), jax.jit(quantizer.lookup)
    for initial in ("normal", "data", "kmeans"):
        fitted = VectorQuantizer(4, 8, **options, initial=initial).fit(*fresh, z)
        assert jax.tree.map(jnp.shape, fitted) == jax.tree.map(jnp.shape, fresh)
        error[initial] = float(quantize(*fitted, z).commitment.mean())
        if initial == "normal":
            jax.tree.map(np.testing.assert_array_equal, fitted, fresh)
        if initial == "data" and quantizer.depth == 1:
            codes = np.asarray(lookup(*fitted, jnp.arange(8)[:, None, None, None])).reshape(1, 8, 4)
            pool = z / np.linalg.norm(z, axis=-1, keepdims=True) if quantizer.cosine else z
            np.testing.assert_allclose(np.abs(pool.reshape(-1, 1, 4) - codes).max(-1).min(0), 0, atol=1e-5)
    assert error["kmeans"] < 0.9 * error["data"] < 0.9 * error["normal"]


def test_fit_of_residual_codebooks_uses_the_residuals():
    z = normal(4, 4, 4, 3)
    quantizer = VectorQuantizer(3, 6, depth=2, update_rule="gradient", initial="data")
    books = np.asarray(quantizer.fit(*quantizer.init(jax.random.key(0)), z)[0]["books"], np.float64)
    pool = np.float64(z).reshape(-1, 3)
    for book in books:
        apart = ((book[:, None] - pool[None]) ** 2).sum(-1)
        np.testing.assert_allclose(apart.min(1), 0, atol=1e-10)
        pool = pool - book[apart.argmin(0)]
