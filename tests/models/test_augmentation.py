"""Conditioning augmentation against SciPy, Pillow, PyTorch and properties from the papers."""

import functools
import io

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from PIL import Image
from scipy import ndimage

from diffjax.data import shapes
from diffjax.errors import UserError
from diffjax.models.diffusion import augmentation
from diffjax.registry import choices, lookup

NAMES = ("none", "blur", "noise", "bsr")
IMAGES = np.stack([shapes.render(shapes.scene("train", i), 20) for i in range(6)]).astype(np.float32) / 127.5 - 1
KEYS = jax.random.split(jax.random.key(0), len(IMAGES))
LEVELS = np.linspace(0, 1, len(IMAGES), dtype=np.float32)
CLEAN = {"grain": 0.0, "quality": 95.0}
STRONG = {"sigma": 1.5, "factor": 3.0, "grain": 25.0, "quality": 30.0}

DOWN_UP = jax.jit(augmentation._down_up, static_argnums=0)


@functools.cache
def batched(name: str, **options):
    """Returns a compiled choice: (keys [B], images [B, h, w, c], levels [B]) -> images."""
    return jax.jit(jax.vmap(functools.partial(choices(augmentation)[name], **options)))


def apply(name: str, images=IMAGES, level: float = 1.0, keys=KEYS, **options) -> np.ndarray:
    return np.asarray(batched(name, **options)(keys[: len(images)], images, jnp.full(len(images), level)))


def roughness(images: np.ndarray) -> float:
    """Returns the mean square of differences between neighbouring pixels."""
    return float(sum(np.mean(np.diff(images, axis=axis) ** 2) for axis in (1, 2)))


def test_the_choices():
    assert set(choices(augmentation)) == set(NAMES)
    assert lookup("degradation", augmentation, "blur(sigma=0.6)").options == {"sigma": 0.6}


@pytest.mark.parametrize("name", NAMES)
def test_level_0_leaves_an_image_unchanged(name):
    np.testing.assert_allclose(apply(name, level=0.0), IMAGES, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_degraded_the_same_in_any_batch(name):
    together = np.asarray(batched(name)(KEYS, IMAGES, LEVELS))
    alone = jax.jit(choices(augmentation)[name])
    for i in (1, 4):
        degraded = np.asarray(alone(KEYS[i], IMAGES[i], LEVELS[i]))
        assert degraded.shape == IMAGES[i].shape
        if name == "bsr":  # a rounding of JPEG's may fall to the other side
            assert np.mean((degraded - together[i]) ** 2) < 1e-2 * np.mean((degraded - IMAGES[i]) ** 2)
        else:
            np.testing.assert_allclose(degraded, together[i], atol=1e-5)


# --- Blur ---


@pytest.mark.parametrize(("level", "sigma"), [(1.0, 0.6), (0.5, 0.6), (1.0, 2.0)])
def test_blur_matches_scipy(level, sigma):
    degraded = apply("blur", level=level, sigma=sigma)
    std, radius = level * sigma, int(4 * sigma + 0.5)
    expected = ndimage.gaussian_filter(IMAGES.astype(np.float64), (0, std, std, 0), mode="nearest", radius=radius)
    np.testing.assert_allclose(degraded, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["blur", "bsr"])
def test_a_uniform_image_stays_uniform(name):
    plain = np.broadcast_to(np.array([0.5, -0.25, 1.0], np.float32), IMAGES.shape)
    degraded = apply(name, plain, **(CLEAN if name == "bsr" else {"sigma": 3.0}))
    rounding = 2.0 * 2 / 255 if name == "bsr" else 1e-5  # of two JPEGs, of floats
    np.testing.assert_allclose(degraded, plain, atol=rounding)
    assert np.ptp(degraded, axis=(1, 2)).max() < 1e-5  # up to the borders


@pytest.mark.parametrize("name", ["blur", "bsr"])
def test_a_higher_level_loses_more_of_the_details(name):
    options = CLEAN if name == "bsr" else {}
    left = [roughness(apply(name, level=level, **options)) for level in (0.0, 0.5, 0.75, 1.0)]
    assert np.all(np.diff(left) < 0)
    assert left[-1] < 0.8 * left[0]


# --- Noise ---


@pytest.mark.parametrize(("level", "max_std"), [(1.0, 0.5), (0.5, 0.5), (1.0, 1.0)])
def test_noise_preserves_the_variance(level, max_std):
    images = np.random.default_rng(0).normal(size=(6, 40, 40, 3)).astype(np.float32)
    degraded, s = apply("noise", images, level, max_std=max_std), level * max_std
    rest = degraded - np.sqrt(1 - s**2) * images
    count = images.size
    assert abs(rest.mean()) < 4 * s / np.sqrt(count)
    assert abs(rest.var() / s**2 - 1) < 4 * np.sqrt(2 / count)
    assert abs(degraded.var() / images.var() - 1) < 4 * np.sqrt(2 / count)


# --- BSR ---


def test_bsr_stays_close_to_the_image_and_in_range():
    for options, worst in (({}, 10.0), (STRONG, 8.0)):
        degraded = apply("bsr", **options)
        assert np.all(np.isfinite(degraded)) and np.abs(degraded).max() <= 1
        psnr = 10 * np.log10(4 / np.mean((degraded - IMAGES) ** 2, axis=(1, 2, 3)))
        assert psnr.min() > worst and psnr.mean() < 35


def test_bsr_is_a_function_of_its_key():
    same = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    first, repeated = apply("bsr", same), apply("bsr", same)
    np.testing.assert_array_equal(first, repeated)
    for i in range(1, len(first)):
        assert np.abs(first[i] - first[0]).max() > 1e-2


def test_bsr_supports_grey_images_and_any_size():
    degraded = np.asarray(jax.jit(augmentation.bsr)(KEYS[0], IMAGES[0, :9, :13, :1], 1.0))
    assert degraded.shape == (9, 13, 1) and np.all(np.isfinite(degraded))


@pytest.mark.parametrize("way", [0, 1, 2])
@pytest.mark.parametrize("small", [20, 13, 10, 7])
def test_down_and_upsampling_preserves_constants_and_positions(way, small):
    rows = np.asarray(DOWN_UP(20, 20 / small, way, 1))
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)
    bump = np.exp(-(((np.arange(20) - 9.5) / 3) ** 2))
    degraded = rows @ bump
    centre = np.sum(np.arange(20) * degraded) / np.sum(degraded)
    assert abs(centre - 9.5) < (0.75 if way == 0 else 0.01)  # the nearest may lie to one side
    assert degraded.max() > 0.7 and np.linalg.matrix_rank(rows, tol=1e-4) <= small


@pytest.mark.parametrize("way", [1, 2])
def test_interpolation_matches_pytorch(way):
    torch = pytest.importorskip("torch")
    mode = {1: "bilinear", 2: "bicubic"}[way]
    rows = np.asarray(jax.jit(augmentation._resize, static_argnums=(0, 1, 2, 3))(20, 20 / 9, 20, way))[:9]
    expected = torch.nn.functional.interpolate(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), (9, 9), mode=mode)
    degraded = np.einsum("ij,kl,bjlc->bcik", rows, rows, IMAGES)
    np.testing.assert_allclose(degraded, expected.numpy(), atol=1e-5)


def test_the_anisotropic_kernel_has_its_covariance():
    offsets, axes, angle = np.arange(-20, 21), np.array([3.0, 1.5]), 0.4
    kernel = np.asarray(jax.jit(lambda axes: augmentation._ellipse(offsets, axes, angle))(axes), np.float64)
    grid = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1)
    degraded = np.einsum("ij,ijk,ijl->kl", kernel, grid, grid)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(degraded, turn @ np.diag(axes**2) @ turn.T, atol=1e-3)


def pillow(grey_levels: np.ndarray, quality: int) -> np.ndarray:
    """Returns images uint8 [h, w, 1 or 3] after Pillow's JPEG without chroma subsampling."""
    file = io.BytesIO()
    Image.fromarray(grey_levels.squeeze(-1) if grey_levels.shape[-1] == 1 else grey_levels).save(
        file, "JPEG", quality=quality, subsampling=0
    )
    return np.asarray(Image.open(file), np.float64).reshape(grey_levels.shape)


def jpeg(grey_levels: np.ndarray, quality: int) -> np.ndarray:
    """Returns images after the JPEG of augmentation.py."""
    image = jnp.asarray(grey_levels / 127.5 - 1, jnp.float32)
    degraded = jax.jit(augmentation._jpeg)(image, jnp.float32(quality), jnp.float32(1))
    return np.clip((np.asarray(degraded) + 1) * 127.5, 0, 255)


@pytest.mark.parametrize("quality", [30, 60, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_matches_pillow(quality, channels):
    grey_levels = shapes.render(shapes.scene("train", 2), 44)[:, :36, :channels]  # no whole blocks
    noised = grey_levels + np.random.default_rng(0).normal(0, 12, grey_levels.shape)
    grey_levels = np.clip(noised, 0, 255).astype(np.uint8)
    degraded, expected = jpeg(grey_levels, quality), pillow(grey_levels, quality)

    def psnr(a, b):
        return 10 * np.log10(255**2 / np.mean((a - b) ** 2))

    assert psnr(degraded, expected) > max(40, psnr(expected, grey_levels) + 4)


def test_jpeg_matches_pillow_on_every_grey_level():
    greys = np.broadcast_to(np.arange(256, dtype=np.uint8).repeat(8)[None, :, None], (8, 2048, 1))  # a block each
    np.testing.assert_allclose(jpeg(greys, 30), pillow(greys, 30), atol=0.51)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blur(sigma=-1)", "at least 0"),
        ("noise(max_std=1.5)", "from 0 to 1"),
        ("bsr(quality=0)", "quality from 1 to 95"),
        ("bsr(factor=0.5)", "factor at least 1"),
    ],
)
def test_options_out_of_range_raise(text, message):
    spoil = lookup("degradation", augmentation, text).bind()
    with pytest.raises(UserError, match=message):
        spoil(KEYS[0], IMAGES[0], 1.0)
