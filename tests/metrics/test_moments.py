"""Moments of a stream against NumPy's of the joined array."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax.metrics import moments


@st.composite
def batches(draw):
    """Two to five batches of features of one dimension, in float32 or float64, some of one row, of any scale."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dimension = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    mean, scale = 10.0 ** draw(st.integers(-3, 3)), 10.0 ** draw(st.integers(-3, 3))
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    return [(mean + scale * rng.normal(size=(size, dimension))).astype(dtype) for size in sizes]


def check_equal(found, expected):
    """To rounding: of a sum of squares that is of the features' distance from zero too."""
    assert found.count == expected.count
    spread = np.trace(expected.scatter) + 1e-12 * expected.count * np.sum(expected.mean**2)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-12 * np.sqrt(spread), rtol=1e-12)
    np.testing.assert_allclose(found.scatter, expected.scatter, atol=1e-10 * spread)


@settings(deadline=None, max_examples=60)
@given(batches())
def test_merged_moments_equal_numpy(parts):
    merged = functools.reduce(moments.merge, map(moments.from_features, parts))
    x = np.concatenate(parts).astype(np.float64)
    deviations = x - x.mean(0)
    check_equal(merged, moments.Moments(len(x), x.mean(0), deviations.T @ deviations))
    expected = np.cov(x, rowvar=False).reshape(merged.scatter.shape)
    np.testing.assert_allclose(merged.covariance, expected, atol=1e-9 * np.trace(expected) + 1e-20 * np.sum(x**2))


@settings(deadline=None, max_examples=60)
@given(batches())
def test_merging_is_associative_and_commutative(parts):
    a, b, c = map(moments.from_features, [*parts, parts[0]][:3])
    check_equal(moments.merge(moments.merge(a, b), c), moments.merge(a, moments.merge(b, c)))
    check_equal(moments.merge(a, b), moments.merge(b, a))


@pytest.mark.parametrize("size", [1, 7, 100, 2000])
def test_a_mean_far_from_zero_loses_no_precision(size):
    """Mean 1e6 and unit variance; the sum of squares of floats of 1e6 would be right to 1e-4 only."""
    x = np.random.default_rng(0).normal(size=(2000, 3))
    x = (x + 1e6) - 1e6  # rounded so that adding 1e6 is exact
    found = functools.reduce(
        moments.merge, (moments.from_features(x[start : start + size] + 1e6) for start in range(0, len(x), size))
    )
    assert found.count == len(x)
    np.testing.assert_allclose(found.mean, 1e6 + x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), atol=1e-10)


def test_features_are_not_modified():
    x = np.random.default_rng(0).normal(size=(5, 2))
    before = x.copy()
    moments.from_features(x)
    np.testing.assert_array_equal(x, before)


def test_one_feature_has_no_covariance():
    alone = moments.from_features(np.ones((1, 2)))
    with pytest.raises(ValueError, match="at least 2"):
        _ = alone.covariance
    np.testing.assert_allclose(
        moments.merge(alone, moments.from_features(np.array([[3.0, 1.0]]))).covariance, [[2, 0], [0, 0]]
    )
