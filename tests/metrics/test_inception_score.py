"""The inception score in closed cases."""

import numpy as np
import pytest

from diffjax.metrics.inception_score import inception_score


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_identical_samples_score_one(scale):
    """Holds for any distribution of their classes."""
    logits = np.broadcast_to(scale * np.random.default_rng(0).normal(size=7), (50, 7))
    np.testing.assert_allclose(inception_score(logits), (1, 0), atol=1e-12)
    np.testing.assert_allclose(inception_score(np.zeros((50, 7), np.float32)), (1, 0), atol=1e-12)


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_confident_samples_of_every_class_score_their_number(scale):
    logits = scale * np.tile(np.eye(7, dtype=np.float32), (20, 1))
    np.testing.assert_allclose(inception_score(logits, splits=5), (7, 0), atol=1e-12)


def test_mean_and_deviation_of_different_splits():
    """The first split has three certain classes and the second one, so the scores are 3 and 1."""
    logits = 1e3 * np.eye(3)[[0, 1, 2, 0, 1, 2, 1, 1, 1, 1, 1, 1]]
    np.testing.assert_allclose(inception_score(logits, splits=2), (2, 1))


def test_score_is_the_exponential_of_the_mutual_information():
    """H(y) - E H(y | x)."""
    logits = np.random.default_rng(0).normal(size=(30, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def entropy(p):
        return -np.sum(p * np.log(p), axis=-1)

    expected = np.exp(entropy(p.mean(0)) - entropy(p).mean())
    np.testing.assert_allclose(inception_score(logits, splits=1), (expected, 0))
    np.testing.assert_allclose(inception_score(logits + 500, splits=1), (expected, 0))


@pytest.mark.parametrize(("count", "splits"), [(9, 10), (5, 0)])
def test_fewer_samples_than_splits_raise(count, splits):
    with pytest.raises(ValueError, match="split"):
        inception_score(np.zeros((count, 3)), splits=splits)
