"""Measurements against NumPy, SciPy and Pillow."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from PIL import Image
from scipy import ndimage

from diffjax.diffusion import measurements

RNG = np.random.default_rng(5)
IMAGE = np.float32(RNG.uniform(-1, 1, size=(6, 10, 3)))


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0])  # the last filter is longer than the image
def test_blur_equals_scipys(sigma):
    expected = ndimage.gaussian_filter(np.float64(IMAGE), (sigma, sigma, 0), mode="reflect", truncate=4)
    np.testing.assert_allclose(measurements.blur(sigma=sigma)(jnp.asarray(IMAGE)), expected, atol=1e-5)


def test_downsample_averages_squares():
    expected = [[IMAGE[i : i + 2, j : j + 2].mean((0, 1)) for j in range(0, 10, 2)] for i in range(0, 6, 2)]
    np.testing.assert_allclose(measurements.downsample(factor=2)(jnp.asarray(IMAGE)), expected, atol=1e-6)


def test_grey_equals_pillows_luma():
    pixels = RNG.integers(0, 256, size=(6, 10, 3)).astype(np.uint8)
    result = measurements.grey()(jnp.asarray(pixels, jnp.float32))
    np.testing.assert_allclose(result[..., 0], np.asarray(Image.fromarray(pixels).convert("L"), np.float32), atol=1.0)


def test_mask_and_matrix_are_selections_and_products():
    indices, array = np.array([3, 7, 100]), np.float32(RNG.normal(size=(4, IMAGE.size)))
    known = measurements.mask(array=jnp.asarray(indices))(jnp.asarray(IMAGE))
    np.testing.assert_array_equal(known, IMAGE.ravel()[indices])
    result = measurements.matrix(array=jnp.asarray(array))(jnp.asarray(IMAGE))
    np.testing.assert_allclose(result, array @ IMAGE.ravel(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("operator", "problem"),
    [
        (measurements.downsample(factor=4), "must be a whole number that divides the sides 6 and 10"),
        (measurements.downsample(factor=1.5), "must be a whole number"),
        (measurements.matrix(array=jnp.ones((2, 5))), "it must have 180 columns"),
    ],
)
def test_operators_that_do_not_fit_the_image_raise(operator, problem):
    with pytest.raises(ValueError, match=problem):
        jax.eval_shape(operator, jnp.asarray(IMAGE))


def test_grey_requires_colours():
    with pytest.raises(ValueError, match="requires images of 3 channels, not 1"):
        jax.eval_shape(measurements.grey(), jnp.zeros((4, 4, 1)))
