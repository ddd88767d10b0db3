"""Measures of pairs against closed forms and NumPy's structural similarity."""

import numpy as np
import pytest

from diffjax.metrics import similarity

SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3), (9, 14, 2)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def pair(shape, noise=40):
    """Returns images with some structure and noised copies."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = 128 + 90 * np.sin(rows / 3)[..., None] * np.cos(columns[..., None] / 4 + np.arange(shape[2]))
    a = np.stack([waves, 255 - waves, rng.integers(0, 256, shape)])
    b = a + rng.normal(0, noise, a.shape)
    return tuple(np.clip(np.round(x), 0, 255).astype(np.uint8) for x in (a, b))


def numpy_ssim(a, b):
    """SSIM of one channel, window by window: Wang et al. 2004, eqs. 13 to 16.

    Windows beyond the border of small images use mirrored pixels.
    """
    offsets = np.arange(11) - 5
    weight = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    border = min(5, (min(a.shape) - 1) // 2)
    a, b = (np.pad(np.float64(x), 5, mode="symmetric") for x in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i in range(border, a.shape[0] - 10 - border):
        for j in range(border, a.shape[1] - 10 - border):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (weight * x).sum(), (weight * y).sum()
            vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
            vxy = (weight * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


@every_shape
def test_ssim_equals_numpy(shape):
    a, b = pair(shape)
    expected = [np.mean([numpy_ssim(x[..., c], y[..., c]) for c in range(shape[2])]) for x, y in zip(a, b, strict=True)]
    found = similarity.ssim(a, b)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape == (3,) and found.max() < 0.95
    np.testing.assert_allclose(similarity.ssim(b, a), found)


@every_shape
def test_equal_images(shape):
    a, _ = pair(shape)
    np.testing.assert_allclose(similarity.ssim(a, a), 1)
    np.testing.assert_array_equal(similarity.mse(a, a), 0)
    np.testing.assert_allclose(similarity.psnr(a, a), 100)


def test_ssim_of_flat_images():
    """Without variance only the means count: (2 a b + c1) / (a^2 + b^2 + c1)."""
    a, b = (np.full((1, 16, 16, 1), value, np.uint8) for value in (200, 50))
    c1 = 2.55**2
    np.testing.assert_allclose(similarity.ssim(a, b), (2 * 200 * 50 + c1) / (200**2 + 50**2 + c1))


def test_mse_and_psnr_of_a_constant_difference():
    """Includes differences at which uint8 would wrap around."""
    a = np.zeros((3, 8, 8, 1), np.uint8)
    b = a + np.array([255, 51, 1], np.uint8)[:, None, None, None]
    expected = np.array([1, 1 / 25, 1 / 255**2])
    for found in (similarity.mse(a, b), similarity.mse(b, a)):
        np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(similarity.psnr(a, b), [0, 10 * np.log10(25), 20 * np.log10(255)], atol=1e-12)


def test_similarity_decreases_with_noise():
    a, b = pair((32, 32, 3), noise=10)
    _, c = pair((32, 32, 3), noise=60)
    assert (similarity.ssim(a, b) > similarity.ssim(a, c)).all() and (
        similarity.psnr(a, b) > similarity.psnr(a, c)
    ).all()


def test_every_measure_is_explained():
    assert similarity.METRICS.keys() == similarity.DESCRIPTIONS.keys()


def test_rms_difference_and_its_error():
    """The error agrees with the spread over other pairs."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (4000, 4, 4, 1)).astype(np.uint8)
    b = rng.integers(0, 256, (4000, 4, 4, 1)).astype(np.uint8)
    value, error = similarity.rms_difference(a, b)
    assert value == pytest.approx(np.sqrt(np.mean((a.astype(float) - b) ** 2)))
    parts = [similarity.rms_difference(a[i::40], b[i::40]).value for i in range(40)]
    assert error == pytest.approx(np.std(parts, ddof=1) / np.sqrt(40), rel=0.4)
    assert similarity.rms_difference(a, a) == (0, 0)


def test_differences_across_the_border_of_a_mask_equal_those_of_a_loop():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 5, 6, 2)).astype(np.uint8)
    masks = (rng.random((3, 5, 6, 1)) < 0.4).astype(np.float32)
    masks[2] = 1  # without a border
    expected = []
    for image, mask in zip(images.astype(float), masks[..., 0], strict=True):
        pairs = [((i, j), (i, j + 1)) for i in range(5) for j in range(5)]
        pairs += [((i, j), (i + 1, j)) for i in range(4) for j in range(6)]
        across = [np.abs(image[a] - image[b]).mean() for a, b in pairs if mask[a] != mask[b]]
        expected.append(np.mean(across) if across else 0.0)
    np.testing.assert_allclose(similarity.border_difference(images, masks), expected)


def test_the_masked_error_ignores_the_rest():
    a, masks = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 1), np.float32)
    masks[0, :, :2], masks[1, 1, 1] = 1, 1
    b = np.where(masks > 0, 51, 200).astype(np.uint8) + a
    np.testing.assert_allclose(similarity.masked_mse(a, b, masks), [1 / 25, 1 / 25])


def test_diversity_is_the_mean_error_of_all_pairs():
    images = np.random.default_rng(2).integers(0, 256, (3, 4, 5, 5, 2)).astype(np.uint8)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    expected = np.mean([similarity.mse(images[:, i], images[:, j]) for i, j in pairs], axis=0)
    np.testing.assert_allclose(similarity.diversity(images), expected)
