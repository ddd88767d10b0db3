"""Conditioning augmentation: degrades the low-resolution input of an upsampler. Each public function is a choice.

Training on degraded inputs makes upsamplers robust to artefacts of generated ones. Each choice takes a key, one image
[h, w, c] in [-1, 1] and a level in [0, 1], which may be traced: 0 leaves the image unchanged, 1 applies the options in
full.

References:
  Ho et al. 2021, "Cascaded diffusion models for high fidelity image generation", section 3.
"""

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from diffjax.errors import UserError
from diffjax.typing import PRNGKey, Scalar

Image = Float[Array, "h w c"]


def none(key: PRNGKey, image: Image, level: Scalar) -> Image:
    """Returns the image unchanged: the upsamplers of ADM (Dhariwal & Nichol 2021) and GLIDE (Nichol et al. 2021)."""
    return image


def blur(key: PRNGKey, image: Image, level: Scalar, *, sigma: float = 0.6) -> Image:
    """Applies Gaussian blur with a standard deviation of `level` * `sigma` pixels: Ho et al. 2021, section 3.1.

    The default 0.6 is that of unCLIP's first upsampler (Ramesh et al. 2022, section 2.1 and appendix C). Its kernel has
    a radius of one pixel, this one of four standard deviations; edges are repeated.

    Raises:
      UserError: a negative `sigma`.
    """
    if sigma < 0:
        raise UserError(f"blur(sigma={sigma:g}): must be a standard deviation in pixels, at least 0")
    weights = _normalised(_bell(_offsets(sigma), level * sigma))
    return _filter(_filter(image, weights[:, None]), weights[None, :])


def noise(key: PRNGKey, image: Image, level: Scalar, *, max_std: float = 0.5) -> Image:
    """Returns sqrt(1 - s^2) x + s eps with s = `level` * `max_std`.

    References: Ho et al. 2021, section 3.3; Imagen (Saharia et al. 2022), section 2.4.

    Raises:
      UserError: `max_std` is not in [0, 1].
    """
    if not 0 <= max_std <= 1:
        raise UserError(f"noise(max_std={max_std:g}): must be from 0 to 1, as the variance is preserved")
    s = level * max_std
    return jnp.sqrt(1.0 - s**2) * image + s * jax.random.normal(key, image.shape)


def bsr(
    key: PRNGKey,
    image: Image,
    level: Scalar,
    *,
    sigma: float = 0.7,
    factor: float = 2.0,
    grain: float = 2.0,
    quality: float = 80.0,
) -> Image:
    """Applies BSR: two blurs, down- and upsampling, noise and JPEG in random order, then JPEG again.

    unCLIP's second upsampler is trained with BSR (Ramesh et al. 2022, section 2.1 and appendix C) in the moderate form
    of Rombach et al. 2022, whose code has nearly these defaults. Those of Zhang et al. 2021 are nearly
    bsr(sigma=2.8, grain=25, quality=30).

    Differences from theirs: all operations work at low resolution, not between high and low resolution, so `factor` is
    relative to the low one. Strengths start at 0, so that `level` can scale them. Noise of the channels is independent
    or equal, without other correlations. JPEG does not subsample chroma. There is no sensor noise, as in Rombach et al.

    Reference: Zhang et al. 2021, "Designing a practical degradation model for deep blind image super-resolution".

    Args:
      sigma: largest standard deviation of a blur in pixels, isotropic or along an axis of the anisotropic one.
      factor: largest factor of downsampling.
      grain: largest standard deviation of the noise, in grey levels of 255.
      quality: lowest quality of JPEG, 1 to 95; the highest is 95. `level` scales its quantisation steps.

    Raises:
      UserError: an option out of its range.
    """
    if sigma < 0 or factor < 1 or grain < 0 or not 1 <= quality <= 95:
        raise UserError(
            f"bsr(sigma={sigma:g}, factor={factor:g}, grain={grain:g}, quality={quality:g}): "
            "sigma and grain must be at least 0, factor at least 1, and quality from 1 to 95"
        )
    scalar_key, grain_key = jax.random.split(key)
    std, major, minor, turn, smaller, down, up, strength, grey, early, *rest = jax.random.uniform(scalar_key, (17,))
    early_quality, last_quality = (quality + (95.0 - quality) * share for share in rest[:2])

    disc = _normalised(_bell(_offsets(sigma), level * sigma * std))
    axes = level * sigma * jnp.sqrt(jnp.stack([major, minor]))
    ellipse = _ellipse(_offsets(sigma), axes, jnp.pi * turn)
    scale = 1.0 + level * smaller * (factor - 1.0)
    methods = (3 * down).astype(jnp.int32), (1 + 2 * up).astype(jnp.int32)  # upsampling is not nearest-neighbour
    rows, columns = (_down_up(side, scale, *methods) for side in image.shape[:2])
    eps = jax.random.normal(grain_key, image.shape)
    eps = jnp.where(grey < 0.5, eps[..., :1], eps)

    steps = [
        lambda x: _filter(_filter(x, disc[:, None]), disc[None, :]),
        lambda x: _filter(x, ellipse),
        lambda x: jnp.einsum("ij,kl,jlc->ikc", rows, columns, x, precision="highest"),
        lambda x: x + level * strength * grain / 127.5 * eps,
        lambda x: _jpeg(x, early_quality, level * (early < 0.9)),
    ]
    order = jnp.argsort(jnp.stack(rest[2:]))
    image, _ = lax.scan(lambda x, step: (jnp.clip(lax.switch(step, steps, x), -1.0, 1.0), None), image, order)
    return jnp.clip(_jpeg(image, last_quality, level), -1.0, 1.0)


def _offsets(sigma: float) -> Float[np.ndarray, " k"]:
    """Returns the pixel offsets of a kernel with a radius of four standard deviations."""
    radius = int(4.0 * sigma + 0.5)
    return np.arange(-radius, radius + 1, dtype=np.float32)


def _bell(distance: ArrayLike, std: Scalar) -> Array:
    """Returns a Gaussian that is 1 at distance 0; with `std` 0 it is 0 elsewhere."""
    return jnp.exp(-0.5 * (jnp.asarray(distance) / jnp.maximum(std, 1e-3)) ** 2)


def _normalised(weights: Array) -> Array:
    return weights / jnp.sum(weights)


def _ellipse(offsets: Float[np.ndarray, " k"], axes: Float[Array, "2"], angle: Scalar) -> Float[Array, "k k"]:
    """Returns a Gaussian kernel with standard deviations `axes`, rotated by `angle`."""
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    along, across = jnp.cos(angle) * y + jnp.sin(angle) * x, jnp.cos(angle) * x - jnp.sin(angle) * y
    return _normalised(_bell(along, axes[0]) * _bell(across, axes[1]))


def _filter(image: Image, kernel: Float[Array, "m n"]) -> Image:
    """Filters each channel with a kernel of odd sides; edges are repeated."""
    m, n = (side // 2 for side in kernel.shape)
    padded = jnp.pad(image, ((m, m), (n, n), (0, 0)), mode="edge")
    planes = jnp.moveaxis(padded, -1, 0)[:, None]  # [c, 1, h, w]
    filtered = lax.conv_general_dilated(planes, kernel[None, None], (1, 1), "VALID", precision="highest")
    return jnp.moveaxis(filtered[:, 0], 0, -1)


_CUBIC = -0.75  # slope of the cubic at distance 1, as in OpenCV and PyTorch
_INTERPOLATIONS = (  # nearest, linear, cubic: weights of pixels at a distance in (-2, 2)
    lambda d: ((d >= -0.5) & (d < 0.5)).astype(d.dtype),
    lambda d: jnp.maximum(1.0 - jnp.abs(d), 0.0),
    lambda d: jnp.where(
        jnp.abs(d) < 1,
        (_CUBIC + 2) * jnp.abs(d) ** 3 - (_CUBIC + 3) * d**2 + 1,
        _CUBIC * (jnp.abs(d) ** 3 - 5 * d**2 + 8 * jnp.abs(d) - 4),
    ),
)


def _down_up(side: int, scale: Scalar, down: Int[Array, ""], up: Int[Array, ""]) -> Float[Array, "side side"]:
    """Returns the matrix that resizes `side` pixels to side / `scale`, rounded, and back."""
    small = jnp.maximum(jnp.round(side / scale), 1.0)
    shrink, enlarge = _resize(side, side / small, side, down), _resize(side, small / side, small, up)
    return jnp.matmul(enlarge, shrink, precision="highest")


def _resize(side: int, stride: Scalar, end: Scalar | int, method: Int[Array, ""]) -> Float[Array, "side side"]:
    """Returns the matrix that interpolates the first `end` of `side` pixels at half-pixel centres `stride` apart.

    Edges are repeated. The matrix always has `side` rows; rows past the resized image are not used.
    """
    place = (jnp.arange(side) + 0.5) * stride - 0.5
    taps = jnp.floor(place)[:, None] + jnp.arange(-1.0, 3.0)[None, :]  # [side, 4]
    weights = jnp.stack([weigh(taps - place[:, None]) for weigh in _INTERPOLATIONS])[method]
    pixel = jnp.clip(taps, 0, end - 1).astype(jnp.int32)
    return jnp.sum(weights[..., None] * jax.nn.one_hot(pixel, side), axis=1)


_BLOCK = 8
_LUMINANCE = np.array(  # quantisation at quality 50: ITU-T T.81, tables K.1 and K.2
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMINANCE = np.full((_BLOCK, _BLOCK), 99)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_DCT = np.sqrt(2 / _BLOCK) * np.cos(np.pi / _BLOCK * np.outer(np.arange(_BLOCK), np.arange(_BLOCK) + 0.5))
_DCT[0] = np.sqrt(1 / _BLOCK)


def _jpeg(image: Image, quality: Scalar, level: Scalar) -> Image:
    """Applies JPEG, with quantisation steps times `level`, and without other rounding.

    Three channels are RGB, any other number are grey. Chroma is not subsampled. Sides may be any number of pixels.
    """
    height, width, channels = image.shape
    to_ycc = _TO_YCC if channels == 3 else np.eye(channels)
    tables = np.stack([_LUMINANCE, _CHROMINANCE, _CHROMINANCE] if channels == 3 else [_LUMINANCE] * channels)
    percent = jnp.floor(jnp.where(quality < 50, 5000.0 / quality, 200.0 - 2.0 * quality))
    steps = level * jnp.clip(jnp.floor((tables * percent + 50.0) / 100.0), 1.0, 255.0)[None, None]  # [1, 1, c, 8, 8]

    whole = jnp.pad(image, [(0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0)], mode="edge")
    ycc = jnp.einsum("hwc,dc->hwd", 127.5 * whole - 0.5, to_ycc, precision="highest")  # JPEG's zero is 128, not 127.5
    blocks = ycc.reshape(whole.shape[0] // _BLOCK, _BLOCK, whole.shape[1] // _BLOCK, _BLOCK, channels)
    waves = jnp.einsum("ui,aibjc,vj->abcuv", _DCT, blocks, _DCT, precision="highest")
    quantized = steps * jnp.round(waves / jnp.where(steps > 0, steps, 1.0))
    change = jnp.where(steps > 0, quantized - waves, 0.0)
    change = jnp.einsum("ui,abcuv,vj->aibjc", _DCT, change, _DCT, precision="highest").reshape(whole.shape)
    change = jnp.einsum("hwd,cd->hwc", change, np.linalg.inv(to_ycc), precision="highest") / 127.5
    return image + change[:height, :width]
