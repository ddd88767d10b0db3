"""Similarity of pairs of images."""

import numpy as np
from jaxtyping import Float, UInt8
from skimage.metrics import structural_similarity

from diffjax.metrics import resampling
from diffjax.metrics.resampling import Estimate

Images = UInt8[np.ndarray, "N H W C"]


def mse(a: Images, b: Images) -> Float[np.ndarray, " N"]:
    """Computes the mean squared difference of values in [0, 1], per pair."""
    return np.mean(((a.astype(np.float64) - b) / 255) ** 2, axis=(1, 2, 3))


def psnr(a: Images, b: Images) -> Float[np.ndarray, " N"]:
    """Computes the peak signal-to-noise ratio in decibels, -10 log10(mse); 100 for equal images."""
    return -10 * np.log10(np.maximum(mse(a, b), 1e-10))


def ssim(a: Images, b: Images) -> Float[np.ndarray, " N"]:
    """Computes the structural similarity with a Gaussian window of 11 pixels and sigma 1.5, the mean over channels.

    Images smaller than the window use a smaller one.

    Reference: Wang et al. 2004.
    """
    side = min(a.shape[1:3])
    window = min(11, side - 1 + side % 2)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return np.array(
        [structural_similarity(x, y, channel_axis=-1, win_size=window, **options) for x, y in zip(a, b, strict=True)]
    )


METRICS = {"mse": mse, "psnr": psnr, "ssim": ssim}
DESCRIPTIONS = {
    "mse": "MSE (values in [0, 1])",
    "psnr": "PSNR (dB, higher is better)",
    "ssim": "SSIM (higher is better)",
}


def rms_difference(a: Images, b: Images) -> Estimate:
    """Computes the root-mean-square difference of N pairs of images, in grey levels, with its error over the pairs.

    Reference: Song et al. 2021 (DDIM), section 5.2.
    """
    return resampling.square_root(resampling.mean(np.mean((a.astype(np.float64) - b) ** 2, axis=(1, 2, 3))))


def border_difference(images: Images, masks: Float[np.ndarray, "N H W 1"]) -> Float[np.ndarray, " N"]:
    """Computes the mean absolute difference of neighbouring pixels across the border of a mask, in grey levels.

    The pairs are pixels next to each other in a row or a column, of which one is masked. It is large for an inpainted
    region that does not continue the rest of the image. 0 for a mask without a border.
    """
    values, inside = images.astype(np.float64), masks[..., 0] > 0.5
    sums, counts = np.zeros(len(images)), np.zeros(len(images))
    for axis in (1, 2):
        crosses = np.diff(inside, axis=axis)
        differences = np.abs(np.diff(values, axis=axis)).mean(axis=-1)
        sums += np.sum(differences * crosses, axis=(1, 2))
        counts += np.sum(crosses, axis=(1, 2))
    return sums / np.maximum(counts, 1)


def masked_mse(a: Images, b: Images, masks: Float[np.ndarray, "N H W 1"]) -> Float[np.ndarray, " N"]:
    """Computes the mean squared difference of values in [0, 1] where the mask is 1, per pair."""
    squares = np.mean(((a.astype(np.float64) - b) / 255) ** 2, axis=-1, keepdims=True)
    return np.sum(squares * masks, axis=(1, 2, 3)) / np.sum(masks, axis=(1, 2, 3))


def diversity(images: UInt8[np.ndarray, "N K H W C"]) -> Float[np.ndarray, " N"]:
    """Computes the mean of `mse` over the pairs of K images, per group; it is twice their unbiased variance."""
    return 2 * np.mean(np.var(images / 255, axis=1, ddof=1), axis=(1, 2, 3))
