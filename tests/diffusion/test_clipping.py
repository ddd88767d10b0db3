"""Thresholds of x_0 in float64 NumPy."""

import numpy as np
import pytest

from diffjax.diffusion import clipping
from diffjax.registry import choices


def dynamic(x0, percentile=99.5):
    """Saharia et al. 2022, sec. 2.3, one example at a time."""
    choices_made = []
    for one in x0:
        s = max(np.percentile(np.abs(one), percentile), 1.0)
        choices_made.append(np.clip(one, -s, s) / s)
    return np.stack(choices_made)


PAPERS = {"none": lambda x0: x0, "clip": lambda x0: np.maximum(-1, np.minimum(1, x0)), "dynamic": dynamic}
# By example: well inside, a little outside, far outside, and far outside in few pixels.
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)) * np.array([0.1, 1.0, 5.0, 0.2])[:, None, None, None]
IMAGES[3, 0, 0] = 9.0


def test_the_table_is_complete():
    assert set(PAPERS) == set(choices(clipping))


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_threshold(name):
    found = np.asarray(choices(clipping)[name](IMAGES.astype(np.float32)))
    np.testing.assert_allclose(found, PAPERS[name](IMAGES), atol=1e-5)
    assert name == "none" or np.abs(found).max() <= 1


@pytest.mark.parametrize("percentile", [50.0, 90.0, 100.0])
def test_the_percentile_of_dynamic_thresholding(percentile):
    found = clipping.dynamic(IMAGES.astype(np.float32), percentile=percentile)
    np.testing.assert_allclose(found, dynamic(IMAGES, percentile), atol=1e-5)


def test_limits():
    images = IMAGES.astype(np.float32)
    np.testing.assert_array_equal(clipping.clip(images, limit=0.3), np.clip(images, np.float32(-0.3), np.float32(0.3)))
    np.testing.assert_allclose(clipping.dynamic(images, limit=1.0), np.clip(IMAGES, -1, 1), atol=1e-6)
    top = np.minimum(np.maximum(np.percentile(np.abs(IMAGES), 90, axis=(1, 2, 3), keepdims=True), 1), 1.5)
    found = clipping.dynamic(images, percentile=90.0, limit=1.5)
    np.testing.assert_allclose(found, np.clip(IMAGES, -top, top) / top, atol=1e-5)
    for make, limit in ((clipping.clip, 0.0), (clipping.dynamic, 0.9)):
        with pytest.raises(ValueError, match="limit="):
            make(images, limit=limit)


def test_dynamic_thresholding_keeps_values_in_range_and_saturates_few_pixels():
    found = np.asarray(clipping.dynamic(IMAGES.astype(np.float32)))
    np.testing.assert_allclose(found[0], IMAGES[0], atol=1e-6)
    assert (np.abs(found[2]) == 1).mean() < 0.02
    assert (np.abs(np.asarray(clipping.clip(IMAGES[2]))) == 1).mean() > 0.5
    alone = clipping.dynamic(IMAGES[1:2].astype(np.float32))  # s is per example
    np.testing.assert_allclose(alone[0], found[1], atol=1e-6)
