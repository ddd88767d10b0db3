"""Ranges and sizes of images, and the scale of embeddings."""

import jax
from jax import numpy as jnp

from diffjax.typing import Embeddings, Images, Images8


def to_unit_range(images: Images8) -> Images:
    """Returns images [-1, 1] from grey levels [0, 255]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_grey_levels(images: Images) -> Images8:
    """Returns the nearest grey levels [0, 255] of images [-1, 1]."""
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def downsample(images: Images, factor: int) -> Images:
    """Returns images [B, H / factor, W / factor, C]: the mean of each square of `factor` x `factor` pixels."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // factor, factor, width // factor, factor, channels).mean((2, 4))


def upsample_bilinear(images: Images, factor: int) -> Images:
    """Returns images [B, factor H, factor W, C] by bilinear interpolation at half-pixel centres, edges repeated.

    The low-resolution input of ADM's and GLIDE's upsamplers (their code).
    """
    batch, height, width, channels = images.shape
    return jax.image.resize(images, (batch, factor * height, factor * width, channels), "linear")


def upsample_bicubic(images: Images, factor: int) -> Images:
    """Returns images [B, factor H, factor W, C] by bicubic interpolation (Keys, a = -1/2) at half-pixel centres.

    Weights outside the image are left out, as in PIL: the low-resolution input of karlo's upsampler (its code).
    """
    batch, height, width, channels = images.shape
    return jax.image.resize(images, (batch, factor * height, factor * width, channels), "cubic")


def unit_variance(embeddings: Embeddings) -> Embeddings:
    """Scales unit-norm embeddings so that values have unit variance, as layers expect."""
    return embeddings * embeddings.shape[-1] ** 0.5
