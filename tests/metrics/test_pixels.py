"""Features of pixels, and the pixel classifier."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffjax.metrics import pixels
from diffjax.metrics.pixel_classifier import PixelClassifier


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (5, 3), (32, 3), (28, 1)])
def test_pixel_features_are_averages_of_boxes(size, channels):
    images = np.random.default_rng(2).integers(0, 256, (3, size, size, channels), np.uint8)
    side = min(size, 8)
    edges = [i * size // side for i in range(side)] + [size]
    found = pixels.features(images).reshape(3, side, side, channels)
    for i in range(side):
        for j in range(side):
            box = images[:, edges[i] : edges[i + 1], edges[j] : edges[j + 1]].astype(float)
            np.testing.assert_allclose(found[:, i, j], box.mean((1, 2)) / 255, rtol=1e-6)


def test_the_classifier_recognises_digits():
    """Accuracy on held-out real digits is at least 97 %, the baseline of configs/digits.py."""
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
    train, test = (images[:1400], digits.target[:1400]), (images[1400:], digits.target[1400:])
    recogniser = PixelClassifier((images[::2], digits.target[::2]), (images[1::2], digits.target[1::2]))
    assert recogniser.held_out.value > 0.97
    assert PixelClassifier(train, test).accuracy(test[0], (test[1] + 1) % 10).value < 0.05
