"""Random masks for training inpainting models."""

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from diffjax.typing import PRNGKey

_STROKES, _PIECES = 4, 6  # largest number of strokes, and straight pieces per stroke


def random_mask(key: PRNGKey, side: int, *, full_mask_prob: float = 0.25) -> Float[Array, "side side 1"]:
    """Returns a mask, 1 where the image is masked: everywhere, or a rectangle, strokes or a half.

    GLIDE masks unspecified "random regions" (Nichol et al. 2021, section 4.3). A quarter of the masks covers the whole
    image, as for Stable Diffusion's inpainting model (its model card). Rectangles and strokes are equally likely, as
    LaMa's box and wide masks (Suvorov et al. 2022, section 2.3). Halves, equally likely too, and all sizes are choices
    of this code. On average half of the image is masked. Masks are never empty.

    Args:
      side: height and width.
      full_mask_prob: probability of a mask of the whole image.
    """
    all_key, kind_key, key = jax.random.split(key, 3)
    kinds = [lambda key, kind=kind: kind(key, side) for kind in KINDS.values()]
    mask = lax.switch(jax.random.randint(kind_key, (), 0, len(kinds)), kinds, key)
    mask = mask | jax.random.bernoulli(all_key, full_mask_prob)
    return mask[..., None].astype(jnp.float32)


def mask_of_kind(key: PRNGKey, side: int, kind: str) -> Float[Array, "side side 1"]:
    """Returns a random mask of a kind of KINDS, 1 where the image is masked: see `random_mask`."""
    return KINDS[kind](key, side)[..., None].astype(jnp.float32)


def _rectangle(key: PRNGKey, side: int) -> Bool[Array, "side side"]:
    """Returns a rectangle inside the image, with sides of a quarter to three quarters of the image's."""
    size, place = jax.random.uniform(key, (2, 2))
    size = jnp.maximum(jnp.round(side * (0.25 + 0.5 * size)), 1.0)
    start = jnp.floor(place * (side - size + 1.0))
    pixel = jnp.arange(side)[:, None]
    rows, columns = ((pixel >= start[None, :]) & (pixel < (start + size)[None, :])).T
    return rows[:, None] & columns[None, :]


def _strokes(key: PRNGKey, side: int) -> Bool[Array, "side side"]:
    """Returns one to four thick lines: random walks with small turns, reflected at the borders.

    Points are complex numbers; the image spans 0 to 1 + i.
    """
    count_key, stroke_key, piece_key = jax.random.split(key, 3)
    x, y, direction, thickness = jax.random.uniform(stroke_key, (4, _STROKES, 1))
    turn, length = jax.random.uniform(piece_key, (2, _STROKES, _PIECES))
    steps = 0.25 * length * jnp.exp(1j * jnp.pi * (2.0 * direction + jnp.cumsum(turn - 0.5, axis=1)))
    points = jnp.cumsum(jnp.concatenate([x + 1j * y, steps], axis=1), axis=1)
    points = _reflected(points.real) + 1j * _reflected(points.imag)
    starts, pieces = points[:, :-1], jnp.diff(points, axis=1)
    radius = jnp.maximum(0.03 + 0.06 * thickness, 0.75 / side)  # at least the distance of any point to a pixel centre
    pixel = _centres(side)[None, :] + 1j * _centres(side)[:, None]

    offset = pixel[..., None, None] - starts[None, None]  # [side, side, strokes, pieces]
    along = jnp.real(offset * jnp.conj(pieces)[None, None]) / jnp.maximum(jnp.abs(pieces) ** 2, 1e-12)[None, None]
    distance = jnp.abs(offset - jnp.clip(along, 0.0, 1.0) * pieces[None, None])
    is_present = jnp.arange(_STROKES) <= jax.random.randint(count_key, (), 0, _STROKES)
    return jnp.any((distance <= radius[None, None]) & is_present[None, None, :, None], axis=(2, 3))


def _half(key: PRNGKey, side: int) -> Bool[Array, "side side"]:
    """Returns the left, right, upper or lower half; the middle line of an odd side belongs to each."""
    is_second, is_horizontal = jax.random.bernoulli(key, 0.5, (2,))
    half = jnp.where(is_second, _centres(side) >= 0.5, _centres(side) <= 0.5)
    half = jnp.broadcast_to(half[None, :], (side, side))
    return jnp.where(is_horizontal, half.T, half)


KINDS = {"rectangle": _rectangle, "strokes": _strokes, "half": _half}


def _reflected(position: Array) -> Array:
    """Returns positions reflected into [0, 1]."""
    return 1.0 - jnp.abs(1.0 - position % 2.0)


def _centres(side: int) -> Float[Array, " side"]:
    """Returns the centres of `side` pixels that span [0, 1]."""
    return (jnp.arange(side) + 0.5) / side
