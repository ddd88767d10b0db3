"""The Fréchet distance against closed forms and scipy's root of a matrix."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax.metrics import moments
from diffjax.metrics.frechet import at_infinity, distance_to, frechet_distance
from diffjax.metrics.moments import Moments


def gaussian(mean, covariance):
    """The moments of a population."""
    return Moments(2, np.asarray(mean, float), np.asarray(covariance, float))


def random_gaussian(rng, size):
    root = rng.normal(size=(size, size))
    return gaussian(rng.normal(size=size), root @ root.T + 0.1 * np.eye(size))


def test_distance_of_one_dimensional_gaussians():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    assert frechet_distance(gaussian([1], [[4]]), gaussian([-2], [[25]])) == pytest.approx(9 + 9)


def test_distance_of_covariances_with_common_axes():
    """|m1 - m2|^2 + sum (s1 - s2)^2, for any axes."""
    rng = np.random.default_rng(0)
    axes = scipy.stats.ortho_group.rvs(5, random_state=0)
    first, second = rng.uniform(0.1, 3, (2, 5))
    means = rng.normal(size=(2, 5))
    a, b = (gaussian(m, (axes * s**2) @ axes.T) for m, s in zip(means, (first, second), strict=True))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((first - second) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected)
    # And of samples: the error of a distance of order 1 from 40,000 features is of order 1e-2.
    sampled = (moments.from_features(rng.multivariate_normal(x.mean, x.covariance, 40_000)) for x in (a, b))
    assert frechet_distance(*sampled) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("size", [2, 6, 40])
def test_against_scipy(size):
    rng = np.random.default_rng(0)
    a, b = (random_gaussian(rng, size) for _ in range(2))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)
    assert distance_to(b)(a) == frechet_distance(a, b)


def test_distance_of_covariances_without_common_directions():
    """A direction without variance, such as the corner pixels of the digits."""
    flat, other = gaussian(np.zeros(3), np.diag([1, 0, 0])), gaussian(np.zeros(3), np.diag([0, 4, 0]))
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(flat, other) == pytest.approx(5)
    nothing = gaussian(np.zeros(3), np.zeros((3, 3)))
    assert frechet_distance(nothing, other) == pytest.approx(4)
    assert frechet_distance(nothing, nothing) == 0


@pytest.mark.parametrize("spread", [1.0, 1e-8])
def test_distance_of_fewer_features_than_dimensions(spread):
    """The covariances are singular; the trace of the root is the sum of singular values of the features' product.

    `spread` is the ratio of the least standard deviation to the largest.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20, 60)) * np.geomspace(1, spread, 60)
    a, b = moments.from_features(x), moments.from_features(y)
    left, right = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    nuclear = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance) - 2 * nuclear
    tolerance = 1e-6 * np.trace(a.covariance)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=tolerance)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=tolerance)
    assert 0 <= frechet_distance(a, a) <= tolerance


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(2, 12), st.floats(-100, 100))
def test_a_common_rotation_and_shift_change_nothing(seed, dimension, count, shift):
    """Also of singular covariances: `count` may be less than `dimension`."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, count, dimension))
    rotation = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    moved = (moments.from_features(z @ rotation + shift) for z in (x, 2 * y))
    expected = frechet_distance(moments.from_features(x), moments.from_features(2 * y))
    assert frechet_distance(*moved) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_nan_features_give_a_nan_distance():
    """A distance of zero would be a perfect score."""
    broken = gaussian([np.nan], [[1]])
    assert np.isnan(frechet_distance(broken, gaussian([0], [[1]])))


def test_the_bias_is_inversely_proportional_to_the_number_of_features():
    """The bias is nearly D^2 / 4 N + D / N for N features of a unit Gaussian, D << N, against the population.

    The mean's share is D / N; the root of a Wishart matrix has a trace of D (1 - D / 8 N) to first order.
    """
    rng = np.random.default_rng(0)
    size = 16
    distance = distance_to(gaussian(np.zeros(size), np.eye(size)))
    for count in (250, 500, 1000):
        found = np.mean([distance(moments.from_features(rng.normal(size=(count, size)))) for _ in range(20)])
        assert found == pytest.approx(size * (size / 4 + 1) / count, rel=0.1)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_the_extrapolated_distance_is_unbiased(shift):
    """The true distance is D shift^2; that of all features is wrong by many standard errors."""
    rng = np.random.default_rng(0)
    size, count, repeats = 16, 600, 20
    reference = gaussian(np.zeros(size), np.eye(size))
    truth = size * shift**2
    to_reference = distance_to(reference)
    found = [at_infinity(shift + rng.normal(size=(count, size)), to_reference, seed=i) for i in range(repeats)]
    values = np.array([x.value for x in found])
    error = np.std(values, ddof=1) / np.sqrt(repeats)
    assert abs(values.mean() - truth) < 3 * error
    assert np.mean([x.distances[-1] for x in found]) - truth > 3 * error
    # The error of the residuals is too small, within the bound of the docstring.
    assert 1 < np.std(values, ddof=1) / np.mean([x.standard_error for x in found]) < 2.5
    assert np.mean([abs(x.value - truth) < 5 * x.standard_error for x in found]) > 0.8


def test_the_extrapolation_is_a_least_squares_line():
    x = np.random.default_rng(0).normal(size=(200, 3))
    reference = gaussian(np.zeros(3), np.eye(3))
    found = at_infinity(x, distance_to(reference), seed=0, points=5, smallest=40)
    np.testing.assert_array_equal(found.sizes, [40, 80, 120, 160, 200])
    assert found.distances[-1] == pytest.approx(frechet_distance(moments.from_features(x), reference))
    line = scipy.stats.linregress(1 / found.sizes, found.distances)
    assert found.value == pytest.approx(line.intercept)
    assert found.standard_error == pytest.approx(line.intercept_stderr)


@pytest.mark.parametrize(("count", "size", "smallest"), [(1000, 4, 100), (1000, 100, 200), (100, 100, 50), (4, 2, 2)])
def test_the_smallest_size_is_well_above_the_dimension_if_it_can_be(count, size, smallest):
    x = np.random.default_rng(0).normal(size=(count, size))
    assert at_infinity(x, distance_to(gaussian(np.zeros(size), np.eye(size))), seed=0, points=3).sizes[0] == smallest


@pytest.mark.parametrize("options", [{"smallest": 1}, {"smallest": 10}, {"points": 2}])
def test_too_few_features_for_extrapolation_raise(options):
    with pytest.raises(ValueError, match="no line"):
        at_infinity(np.eye(10), distance_to(gaussian(np.zeros(10), np.eye(10))), seed=0, **options)
