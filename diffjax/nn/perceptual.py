"""Perceptual distance between images in the features of a frozen network (Zhang et al. 2018)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from diffjax.compositing import composite
from diffjax.typing import Images

_MIN_SIDE = 64  # pixels; the patches in the human judgements of Zhang et al.
_EPSILON = 1e-10  # as in LPIPS


def distance(
    features: Callable[[Float[Array, "B h w 3"]], tuple[Float[Array, "B h w c"], ...]],
    a: Images,
    b: Images,
    *,
    weights: Sequence[Float[Array, "1 1 1 c"]] | None = None,
    min_side: int = _MIN_SIDE,
) -> Float[Array, " B"]:
    """Computes the perceptual distance per example.

    Every feature map is normalised to unit length over channels. The weighted squared difference is summed over
    channels, averaged over positions and summed over maps. Without weights, each map contributes 0 to 4.

    Args:
      features: maps RGB images in [-1, 1] to feature maps.
      a: images [B, H, W, C] in [-1, 1] with 1 (grey), 3 (RGB) or 4 (RGBA, composited onto white) channels.
      b: images of the shape of `a`.
      weights: learned channel weights per feature map; None: all 1.
      min_side: smallest side in pixels. Smaller images are enlarged bilinearly by the smallest sufficient integer (28
        to 84, 32 to 64), because the last feature maps of a network for photographs would have a single position.

    Returns:
      Distances, float32 [B], at least 0.

    Raises:
      ValueError: images of different shapes or another number of channels.

    Reference: Zhang et al. 2018, eq. 1.
    """
    if a.shape != b.shape:
        raise ValueError(f"images of shapes {a.shape} and {b.shape}: must be equal for a perceptual distance")
    # One at a time: if only b depends on parameters, no activations of a are stored for the gradient.
    maps_a, maps_b = features(as_rgb(a, min_side)), features(as_rgb(b, min_side))
    factors = [1.0] * len(maps_a) if weights is None else weights
    triples = zip(maps_a, maps_b, factors, strict=True)
    terms = [(w * (_unit(x) - _unit(y)) ** 2).sum(-1).mean((1, 2)) for x, y, w in triples]
    return sum(terms[1:], start=terms[0])


def as_rgb(images: Images, min_side: int = _MIN_SIDE) -> Float[Array, "B h w 3"]:
    """Returns images as RGB with no side below `min_side`: the inputs of the network in `distance`.

    Args:
      images: [B, H, W, C] in [-1, 1] with 1, 3 or 4 channels.
      min_side: smallest side in pixels, see `distance`.

    Raises:
      ValueError: another number of channels.
    """
    batch, height, width, channels = images.shape
    images = images.astype(jnp.float32)
    if channels == 1:
        images = images.repeat(3, axis=-1)
    elif channels == 4:
        images = composite(images, -1.0, 1.0)
    elif channels != 3:
        raise ValueError(f"images have {channels} channels: the perceptual distance requires 1, 3 or 4")
    times = -(-min_side // min(height, width))
    return jax.image.resize(images, (batch, times * height, times * width, 3), "linear") if times > 1 else images


def _unit(x: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
    """Returns features of unit length over channels. The epsilon is under the root for a finite gradient at zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + _EPSILON**2)
