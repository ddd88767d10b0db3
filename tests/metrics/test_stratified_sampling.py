"""Sampled terms of a sum."""

import numpy as np
import pytest

from diffjax.metrics.stratified_sampling import sample_terms


@pytest.mark.parametrize(("terms", "count"), [(1, 1), (20, 20), (1000, 10), (1000, 999), (4000, 100)])
def test_the_weighted_sum_is_unbiased(terms, count):
    rng = np.random.default_rng(0)
    values = 1.0 / (terms - np.arange(terms))  # large at the end, as the bound's
    sums = []
    for _ in range(2000 if count < terms else 1):
        which, weight = sample_terms(rng, terms, count)
        assert len(np.unique(which)) == len(which) == count
        assert terms - 1 in which  # the decoder's term
        assert weight.sum() == terms
        sums.append(np.sum(weight * values[which]))
    error = 5 * np.std(sums) / np.sqrt(len(sums)) + 1e-9
    np.testing.assert_allclose(np.mean(sums), values.sum(), atol=error)


def test_all_terms_have_weight_one():
    which, weight = sample_terms(np.random.default_rng(0), 50, 50)
    np.testing.assert_array_equal(np.sort(which), np.arange(50))
    np.testing.assert_array_equal(weight, 1)
