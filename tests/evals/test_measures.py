"""Measures of samples against closed forms."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_digits

from diffjax.evals import frechet, pixels
from diffjax.evals.frechet import Moments, frechet_distance
from diffjax.evals.recognition import Recogniser


def covariance(rng, size):
    root = rng.normal(size=(size, size))
    return root @ root.T


def test_frechet_distance_of_gaussians_on_a_line():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    a, b = Moments(np.array([1.0]), np.array([[4.0]])), Moments(np.array([-2.0]), np.array([[25.0]]))
    assert frechet_distance(a, b) == pytest.approx(9 + 9)


def test_frechet_distance_against_scipy():
    rng = np.random.default_rng(0)
    a, b = (Moments(rng.normal(size=6), covariance(rng, 6)) for _ in range(2))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_frechet_distance_survives_singular_covariances():
    """A direction without variance, such as the corner pixels of the digits."""
    flat = Moments(np.zeros(3), np.diag([1.0, 0.0, 0.0]))
    other = Moments(np.zeros(3), np.diag([0.0, 4.0, 0.0]))
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(flat, other) == pytest.approx(5)


def test_moments_are_numpys():
    x = np.random.default_rng(1).normal(size=(50, 4))
    found = frechet.moments(x)
    np.testing.assert_allclose(found.mean, x.mean(0))
    np.testing.assert_allclose(found.covariance, (x - x.mean(0)).T @ (x - x.mean(0)) / 49)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (5, 3), (32, 3), (28, 1)])
def test_pixel_features_are_averages_of_boxes(size, channels):
    images = np.random.default_rng(2).integers(0, 256, (3, size, size, channels), np.uint8)
    side = min(size, 8)
    edges = [i * size // side for i in range(side)] + [size]
    found = pixels.features(images).reshape(3, side, side, channels)
    for i in range(side):
        for j in range(side):
            box = images[:, edges[i] : edges[i + 1], edges[j] : edges[j + 1]].astype(float)
            np.testing.assert_allclose(found[:, i, j], box.mean((1, 2)) / 255)


def test_the_recogniser_knows_digits():
    """The figure that samples of configs/digits.py are held against: 97 % or more on held-out real digits."""
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
    train, test = (images[:1400], digits.target[:1400]), (images[1400:], digits.target[1400:])
    recogniser = Recogniser((images[::2], digits.target[::2]), (images[1::2], digits.target[1::2]))
    assert recogniser.held_out_accuracy > 0.97
    assert Recogniser(train, test).accuracy(test[0], (test[1] + 1) % 10) < 0.05
