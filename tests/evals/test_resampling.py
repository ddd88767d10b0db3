"""The bootstrap against the error of a mean."""

import numpy as np
import pytest

from diffjax.evals.resampling import bootstrap


def test_the_error_of_a_mean():
    """s / sqrt(n); 1000 repeats give it to 1 / sqrt(2000)."""
    x = np.random.default_rng(0).normal(3, 2, size=200)
    expected = np.std(x) / np.sqrt(len(x))
    assert bootstrap(np.mean, [x], repeats=1000, seed=0) == pytest.approx(expected, rel=4 / np.sqrt(2000))


def test_arrays_keep_their_rows_together():
    """A mean difference of pairs that are alike has a small error, however much they vary."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 100, size=(200, 3))
    y = x + rng.normal(size=(200, 3))
    found = bootstrap(lambda a, b: float(np.mean(a - b)), [x, y], repeats=500, seed=0)
    assert found == pytest.approx(1 / np.sqrt(600), rel=0.2)


def test_a_seed_is_a_draw():
    x = np.arange(20.0)
    errors = [bootstrap(np.mean, [x], repeats=10, seed=seed) for seed in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.parametrize(("lengths", "repeats"), [((3, 4), 10), ((3, 3), 1), ((), 10)])
def test_what_cannot_be_resampled(lengths, repeats):
    with pytest.raises(ValueError, match="resamples"):
        bootstrap(lambda *arrays: 0.0, [np.ones(n) for n in lengths], repeats=repeats, seed=0)
