"""Upsampled images against bilinear interpolation in NumPy and PyTorch."""

import numpy as np
import pytest

from diffjax.models.images import upsample_bilinear

IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 5, 7, 3)).astype(np.float32)


def interpolate(images: np.ndarray, factor: int, axis: int) -> np.ndarray:
    """Linear interpolation at half-pixel centres; np.interp repeats the edges."""
    side = images.shape[axis]
    places = (np.arange(factor * side) + 0.5) / factor - 0.5
    return np.apply_along_axis(lambda line: np.interp(places, np.arange(side), line), axis, images)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_upsampling_matches_numpy(factor):
    upsampled = np.asarray(upsample_bilinear(IMAGES, factor))
    assert upsampled.shape == (2, factor * 5, factor * 7, 3)
    np.testing.assert_allclose(upsampled, interpolate(interpolate(IMAGES, factor, 1), factor, 2), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampling_matches_pytorch(factor):
    torch = pytest.importorskip("torch")
    planes = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(planes, scale_factor=factor, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(upsample_bilinear(IMAGES, factor), expected.permute(0, 2, 3, 1).numpy(), atol=1e-6)
