"""Maximum mean discrepancy against loops over pairs and closed forms."""

import numpy as np
import pytest

from diffjax.metrics import kernel
from diffjax.metrics.kernel import kernel_distance, squared_mmd


def cubic_of_two(x, y):
    return (sum(i * j for i, j in zip(x, y, strict=True)) / len(x) + 1) ** 3


def gaussian_of_two(x, y):
    return np.exp(-sum((i - j) ** 2 for i, j in zip(x, y, strict=True)) / (2 * 1.5**2))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(
    ("name", "of_two"),
    [(kernel.cubic, cubic_of_two), (kernel.gaussian(1.5), gaussian_of_two)],
    ids=["cubic", "gaussian"],
)
def test_squared_mmd_is_a_mean_over_pairs(name, of_two, unbiased):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)).astype(np.float32), 1 + rng.normal(size=(5, 3))

    def within(x):
        return np.mean([of_two(p, q) for i, p in enumerate(x) for j, q in enumerate(x) if i != j or not unbiased])

    expected = within(a.astype(float)) + within(b) - 2 * np.mean([of_two(p, q) for p in a.astype(float) for q in b])
    assert squared_mmd(a, b, name, unbiased=unbiased) == pytest.approx(expected)
    assert squared_mmd(b, a, name, unbiased=unbiased) == pytest.approx(expected)


def test_biased_squared_mmd_of_equal_sets_is_zero():
    x = np.random.default_rng(0).normal(size=(20, 4))
    for name in (kernel.cubic, kernel.gaussian(10.0)):
        assert squared_mmd(x, x, name, unbiased=False) == pytest.approx(0, abs=1e-12)
        assert squared_mmd(x, x, name) < 0  # unbiased, so negative values occur


def raw_moments(mean, std):
    """E x, E x^2 and E x^3 of a Gaussian."""
    return np.array([mean, mean**2 + std**2, mean**3 + 3 * mean * std**2])


@pytest.mark.parametrize(("counts", "subset_size"), [((150, 150), 1000), ((300, 300), 75), ((60, 500), 1000)])
def test_kernel_distance_of_one_dimensional_gaussians(counts, subset_size):
    """(x y + 1)^3 has the features sqrt(3) x, sqrt(3) x^2, x^3: the squared distance of their means.

    In one block, in subsets, and with one set much larger than the other.
    """
    rng = np.random.default_rng(0)
    expected = np.sum([3, 3, 1] * (raw_moments(0.3, 1.0) - raw_moments(0.0, 1.2)) ** 2)
    results = [
        kernel_distance(
            rng.normal(0.3, 1.0, (counts[0], 1)),
            rng.normal(0.0, 1.2, (counts[1], 1)),
            subsets=30,
            subset_size=subset_size,
            seed=i,
        )
        for i in range(60)
    ]
    values, errors = np.array(results).T
    assert abs(values.mean() - expected) < 3 * values.std(ddof=1) / np.sqrt(len(results))
    # An error of the spread over 60 repetitions is some 10 %; of heavy tails, as here, more.
    assert 0.75 < np.sqrt(np.mean(errors**2)) / values.std(ddof=1) < 1.35


@pytest.mark.parametrize("subset_size", [1000, 50])
def test_kernel_distance_of_equal_distributions_is_unbiased(subset_size):
    rng = np.random.default_rng(0)
    results = [
        kernel_distance(*rng.normal(size=(2, 100, 8)), subsets=40, subset_size=subset_size, seed=i) for i in range(100)
    ]
    values, errors = np.array(results).T
    assert abs(values.mean()) < 3 * values.std(ddof=1) / np.sqrt(len(results))
    assert values.min() < 0 < values.max()
    assert 0.8 < np.sqrt(np.mean(errors**2)) / values.std(ddof=1) < 1.3


def test_the_error_of_a_large_set_in_small_subsets():
    """The error equals the spread over repetitions, though each subset has few of the features."""
    rng = np.random.default_rng(0)
    results = [kernel_distance(*rng.normal(size=(2, 2000, 8)), subsets=20, subset_size=50, seed=i) for i in range(60)]
    values, errors = np.array(results).T
    assert 0.75 < np.sqrt(np.mean(errors**2)) / values.std(ddof=1) < 1.35


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_error_of_a_gaussian_discrepancy(shift):
    rng = np.random.default_rng(0)
    sets = [(rng.normal(shift, 1, size=(60, 4)), rng.normal(size=(90, 4))) for _ in range(150)]
    values = [squared_mmd(a, b, kernel.gaussian(1.5)) for a, b in sets]
    errors = [kernel.mmd_error(a, b, kernel.gaussian(1.5)) for a, b in sets]
    # At shift 0 the variance of the mean kernel is 0, and an estimate of it is cut off below 0: a few are too large.
    assert 0.85 < np.median(errors) / np.std(values, ddof=1) < 1.2


def test_interaction_variances_are_those_of_an_analysis_of_variance():
    """The interaction of k_ij = m + r_i + r_j + noise is the noise, and zero for a kernel that is a sum."""
    rng = np.random.default_rng(0)
    results = {"within": [], "across": []}
    for _ in range(300):
        rows, columns = rng.normal(0, 5, size=(2, 9))
        noise = rng.normal(0, 2, size=(9, 9))
        sums = 3 + rows[:, None] + rows[None, :]
        assert kernel._within(sums)[1] == pytest.approx(0, abs=1e-9)
        results["within"].append(kernel._within(sums + np.triu(noise, 1) + np.triu(noise, 1).T)[1])
        results["across"].append(kernel._interaction(3 + rows[:, None] + columns[None, :] + noise))
    for values in results.values():
        assert abs(np.mean(values) - 4) < 4 * np.std(values) / np.sqrt(len(values))


def test_the_seed_selects_the_subsets():
    a, b = np.random.default_rng(0).normal(size=(2, 50, 3))
    first, same, other = (kernel_distance(a, b, subsets=5, subset_size=20, seed=seed) for seed in (1, 1, 2))
    assert first == same != other
    assert kernel_distance(a, b, seed=1).value == pytest.approx(squared_mmd(a, b, kernel.cubic))


def test_too_few_features_or_subsets_raise():
    with pytest.raises(ValueError, match="subsets"):
        kernel_distance(np.eye(3), np.eye(3)[:1], seed=0)
    with pytest.raises(ValueError, match="subsets"):
        kernel_distance(np.eye(30), np.eye(30), subsets=0, seed=0)
