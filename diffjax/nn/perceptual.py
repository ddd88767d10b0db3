"""A distance between images in the features of a frozen network."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from diffjax.typing import Images

_SMALLEST = 64  # the patches that Zhang et al. asked people to compare
_EPSILON = 1e-10  # LPIPS's


def distance(
    features: Callable[[Float[Array, "B h w 3"]], tuple[Float[Array, "B h w c"], ...]],
    a: Images,
    b: Images,
    *,
    weights: Sequence[Float[Array, "1 1 1 c"]] | None = None,
    smallest: int = _SMALLEST,
) -> Float[Array, "B"]:
    """Zhang et al. 2018, eq. 1: LPIPS, or LPIPS without learned weights (w = 1) where none are given.

    Every map is normalised to unit length over channels; the squared difference is summed over channels by their
    weights, averaged over positions and summed over maps. So each map gives 0 to 4 without weights.

    Images are in [-1, 1], of 1 channel (grey), 3, or 4 (RGBA, put on white). Where a side is below `smallest` they are
    enlarged first, bilinearly and by the least whole number that brings both to it: 28 to 84, 32 to 64. Networks of
    photographs have little to say of smaller ones, whose last maps would be one position.

    Raises ValueError for images of different shapes and for other numbers of channels.
    """
    if a.shape != b.shape:
        raise ValueError(f"images of shapes {a.shape} and {b.shape} have no distance")
    # One at a time: where b alone is trained, nothing is kept for a gradient of a.
    maps_a, maps_b = features(as_rgb(a, smallest)), features(as_rgb(b, smallest))
    weights = [1.0] * len(maps_a) if weights is None else weights
    triples = zip(maps_a, maps_b, weights, strict=True)
    return sum((w * (_unit(x) - _unit(y)) ** 2).sum(-1).mean((1, 2)) for x, y, w in triples)


def as_rgb(images: Images, smallest: int = _SMALLEST) -> Float[Array, "B h w 3"]:
    """Three channels and no side below `smallest`: what `distance` gives to the network."""
    batch, height, width, channels = images.shape
    images = images.astype(jnp.float32)
    if channels == 1:
        images = images.repeat(3, axis=-1)
    elif channels == 4:
        alpha = (images[..., 3:] + 1) / 2
        images = images[..., :3] * alpha + (1 - alpha)
    elif channels != 3:
        raise ValueError(f"images have {channels} channels: the perceptual distance is of 1, 3 or 4")
    times = -(-smallest // min(height, width))
    return jax.image.resize(images, (batch, times * height, times * width, 3), "linear") if times > 1 else images


def _unit(x: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
    """Of unit length over channels. The epsilon is under the root, or the gradient at zero would not be finite."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + _EPSILON**2)
