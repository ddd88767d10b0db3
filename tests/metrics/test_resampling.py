"""Standard errors against closed forms, repetitions and each other."""

import numpy as np
import pytest

from diffjax.metrics.resampling import bootstrap, jackknife, mean, proportion_with_error


def test_the_error_of_a_mean():
    """s / sqrt(n); 1000 repeats give it to 1 / sqrt(2000)."""
    x = np.random.default_rng(0).normal(3, 2, size=200)
    expected = np.std(x) / np.sqrt(len(x))
    assert bootstrap(np.mean, [x], repeats=1000, seed=0) == pytest.approx(expected, rel=4 / np.sqrt(2000))


def test_arrays_keep_their_rows_together():
    """The mean difference of similar pairs has a small error, even if pairs vary much."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 100, size=(200, 3))
    y = x + rng.normal(size=(200, 3))
    found = bootstrap(lambda a, b: float(np.mean(a - b)), [x, y], repeats=500, seed=0)
    assert found == pytest.approx(1 / np.sqrt(600), rel=0.2)


def test_the_seed_determines_the_resample():
    x = np.arange(20.0)
    errors = [bootstrap(np.mean, [x], repeats=10, seed=seed) for seed in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.parametrize(("lengths", "repeats"), [((3, 4), 10), ((3, 3), 1), ((), 10)])
def test_resampling_too_few_values_raises(lengths, repeats):
    with pytest.raises(ValueError, match="resamples"):
        bootstrap(lambda *arrays: 0.0, [np.ones(n) for n in lengths], repeats=repeats, seed=0)


def test_the_mean_of_independent_values():
    x = np.random.default_rng(0).normal(3, 2, size=50)
    value, error = mean(x)
    assert (value, error) == pytest.approx((x.mean(), np.std(x, ddof=1) / np.sqrt(50)))
    assert mean(x, np.arange(50)) == pytest.approx((value, error))
    assert mean(x, np.zeros(50)) == (value, None)  # one group has no spread between groups


def test_the_mean_of_values_in_groups():
    """The error equals the spread over repetitions. Correlated groups of 5 have sqrt(5) times the naive error."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)

    def values():
        return rng.normal(size=40)[groups] + 0.1 * rng.normal(size=200)

    found = [mean(values(), groups) for _ in range(200)]
    spread = np.std([each.value for each in found], ddof=1)
    assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.15)
    assert np.mean([mean(values()).standard_error for _ in range(50)]) < spread / 2


def test_the_error_of_a_share():
    """Wilson's interval of one standard error, and never 0."""
    for right, count in ((0, 20), (20, 20), (7, 20), (500, 500)):
        p, z = right / count, 1.0
        middle = (p + z**2 / (2 * count)) / (1 + z**2 / count)
        low, high = np.roots([1 + z**2 / count, -(2 * p + z**2 / count), p**2])[::-1]  # (p - q)^2 = z^2 q (1 - q) / N
        found = proportion_with_error(np.arange(count) < right)
        assert found == pytest.approx((p, (high - low) / 2), abs=1e-7)
        assert (low + high) / 2 == pytest.approx(middle)
    assert proportion_with_error(np.ones(500, bool)).standard_error == pytest.approx(1 / 1000, rel=0.01)
    assert proportion_with_error(np.arange(2000) < 600).standard_error == pytest.approx(
        np.sqrt(0.3 * 0.7 / 2000), rel=1e-3
    )


def test_the_error_of_a_share_in_groups():
    """20 captions with 50 images each, all right or all wrong, are as uncertain as 20 images."""
    right, groups = np.repeat(np.arange(20) < 12, 50), np.repeat(np.arange(20), 50)
    assert proportion_with_error(right, groups).standard_error == pytest.approx(
        proportion_with_error(np.arange(20) < 12).standard_error, rel=0.05
    )
    assert (
        proportion_with_error(np.ones(1000, bool), groups).standard_error
        == proportion_with_error(np.ones(20, bool)).standard_error
    )


def test_leaving_out_blocks():
    """The error of a mean equals the closed form over block means, and the spread over repetitions."""
    x = np.random.default_rng(0).normal(size=(103, 2))
    found = jackknife(lambda some: some.mean(0), x[:100], blocks=10, seed=0)
    order = np.random.default_rng(0).permutation(100).reshape(10, 10)
    np.testing.assert_allclose(found, x[order].mean(1).std(0, ddof=1) / np.sqrt(10))
    assert jackknife(lambda some: some.mean(0), x, blocks=10, seed=0).shape == (2,)
    sizes = set()
    jackknife(lambda some: sizes.add(len(some)) or some.mean(0), x, blocks=10, seed=0)
    assert sizes == {93}  # one size, one compilation
    with pytest.raises(ValueError, match="9 samples cannot be split into 10 blocks"):
        jackknife(np.mean, np.ones(9), seed=0)
