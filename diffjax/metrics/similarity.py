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
