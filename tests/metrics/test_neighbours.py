"""Precision, recall, density and coverage against loops in NumPy."""

import numpy as np
import pytest

from diffjax.metrics import neighbours
from diffjax.metrics.neighbours import precision_recall_density_coverage


def brute_force(real, fake, k):
    """From the definitions, float64."""

    def radius(x, i):
        return sorted(np.linalg.norm(x - x[i], axis=1)[np.arange(len(x)) != i])[k - 1]

    balls = [(x, radius(real, i)) for i, x in enumerate(real)]
    fake_balls = [(y, radius(fake, j)) for j, y in enumerate(fake)]
    inside = np.array([[np.linalg.norm(y - x) <= r for x, r in balls] for y in fake])
    inside_fake = np.array([[np.linalg.norm(x - y) <= r for y, r in fake_balls] for x in real])
    return inside.any(1).mean(), inside_fake.any(1).mean(), inside.sum() / (k * len(fake)), inside.any(0).mean()


def sets(rng, n, m, size):
    return rng.normal(size=(n, size)), 0.3 + 0.8 * rng.normal(size=(m, size))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m", "size"), [(40, 40, 2), (37, 61, 5), (6, 30, 1)])
def test_against_the_definitions(n, m, size, k):
    real, fake = sets(np.random.default_rng(0), n, m, size)
    np.testing.assert_allclose(
        precision_recall_density_coverage(real, fake, k=k), brute_force(real, fake, k), atol=1e-12
    )


def test_blocks_do_not_change_the_values(monkeypatch):
    """The sizes of the sets are not multiples of the block size."""
    real, fake = sets(np.random.default_rng(1), 37, 61, 4)
    whole = precision_recall_density_coverage(real, fake, k=3)
    monkeypatch.setattr(neighbours, "_BLOCK", 8)
    neighbours._to_neighbour.clear_cache()
    neighbours._count_balls.clear_cache()
    assert precision_recall_density_coverage(real, fake, k=3) == whole


@pytest.mark.parametrize("offset", [1e4, 1e7])
def test_features_far_from_zero_lose_no_precision(offset):
    """In float32 the products of features of 1e4 are right to 10, the squared distances are of order 1."""
    real, fake = sets(np.random.default_rng(2), 50, 40, 3)
    np.testing.assert_allclose(
        precision_recall_density_coverage(real + offset, fake + offset, k=3), brute_force(real, fake, 3), atol=1e-12
    )


def test_distant_sets_have_zero_values():
    x = np.random.default_rng(3).normal(size=(20, 2))
    assert precision_recall_density_coverage(x, x + 100, k=3) == (0, 0, 0, 0)


def test_coverage_and_density_of_equal_distributions():
    """The expected coverage is 1 - prod_{i<k} (N - 1 - i) / (2 N - 1 - i) for N = M: which of 2 N - 1 are nearest."""
    rng = np.random.default_rng(4)
    n, k = 200, 5
    found = np.mean([precision_recall_density_coverage(*rng.normal(size=(2, n, 3)), k=k) for _ in range(10)], axis=0)
    expected = 1 - np.prod([(n - 1 - i) / (2 * n - 1 - i) for i in range(k)])
    assert found[3] == pytest.approx(expected, abs=0.01)
    assert found[2] == pytest.approx(1, abs=0.05)


def test_a_missing_mode_reduces_recall_and_coverage():
    rng = np.random.default_rng(5)
    modes = np.repeat([[0.0], [50.0]], 100, axis=0)
    found = precision_recall_density_coverage(modes + rng.normal(size=(200, 2)), rng.normal(size=(200, 2)), k=5)
    assert found.precision > 0.9 and found.density > 0.9
    assert found.recall < 0.55 and found.coverage < 0.55


def test_more_neighbours_than_features_raise():
    with pytest.raises(ValueError, match="more than k features"):
        precision_recall_density_coverage(np.eye(5), np.eye(3), k=3)
