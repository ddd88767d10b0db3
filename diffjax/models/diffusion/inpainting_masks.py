"""Which part of a picture an in-painting model has to paint anew in training."""

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from diffjax.typing import PRNGKey

_STROKES, _PIECES = 4, 6  # most strokes, and straight pieces of each


def random_mask(key: PRNGKey, side: int, *, everything: float = 0.25) -> Float[Array, "side side 1"]:
    """1 where a picture is erased: everywhere in a share of the cases, else in a rectangle, strokes or a half.

    GLIDE erases "random regions" (Nichol et al. 2021, sec. 4.3) and does not say which. All is erased in a quarter of
    the cases, as for Stable Diffusion's in-painting model (its card); rectangles and strokes are as likely as one
    another, after LaMa's box and wide masks (Suvorov et al. 2022, sec. 2.3). Halves, as likely, and all sizes are our
    choice. On average half of the picture is erased. Never empty.
    """
    all_key, kind_key, key = jax.random.split(key, 3)
    kinds = [lambda key, kind=kind: kind(key, side) for kind in (_rectangle, _strokes, _half)]
    erased = lax.switch(jax.random.randint(kind_key, (), 0, len(kinds)), kinds, key)
    erased = erased | jax.random.bernoulli(all_key, everything)
    return erased[..., None].astype(jnp.float32)


def _rectangle(key: PRNGKey, side: int) -> Bool[Array, "side side"]:
    """Inside the picture, its sides a quarter to three quarters as long."""
    size, place = jax.random.uniform(key, (2, 2))
    size = jnp.maximum(jnp.round(side * (0.25 + 0.5 * size)), 1.0)
    start = jnp.floor(place * (side - size + 1.0))
    pixel = jnp.arange(side)[:, None]
    rows, columns = ((pixel >= start[None, :]) & (pixel < (start + size)[None, :])).T
    return rows[:, None] & columns[None, :]


def _strokes(key: PRNGKey, side: int) -> Bool[Array, "side side"]:
    """One to four thick lines: random walks from anywhere that turn a little at a time, and back at the borders.

    The plane is that of complex numbers, the picture from 0 to 1 + i.
    """
    count_key, stroke_key, piece_key = jax.random.split(key, 3)
    x, y, way, thickness = jax.random.uniform(stroke_key, (4, _STROKES, 1))
    turn, length = jax.random.uniform(piece_key, (2, _STROKES, _PIECES))
    steps = 0.25 * length * jnp.exp(1j * jnp.pi * (2.0 * way + jnp.cumsum(turn - 0.5, axis=1)))
    points = jnp.cumsum(jnp.concatenate([x + 1j * y, steps], axis=1), axis=1)
    points = _reflected(points.real) + 1j * _reflected(points.imag)
    starts, pieces = points[:, :-1], jnp.diff(points, axis=1)
    radius = jnp.maximum(0.03 + 0.06 * thickness, 0.75 / side)  # the centre of some pixel is that near to any point
    pixel = _centres(side)[None, :] + 1j * _centres(side)[:, None]

    offset = pixel[..., None, None] - starts[None, None]  # [side, side, strokes, pieces]
    along = jnp.real(offset * jnp.conj(pieces)[None, None]) / jnp.maximum(jnp.abs(pieces) ** 2, 1e-12)[None, None]
    distance = jnp.abs(offset - jnp.clip(along, 0.0, 1.0) * pieces[None, None])
    drawn = jnp.arange(_STROKES) <= jax.random.randint(count_key, (), 0, _STROKES)
    return jnp.any((distance <= radius[None, None]) & drawn[None, None, :, None], axis=(2, 3))


def _half(key: PRNGKey, side: int) -> Bool[Array, "side side"]:
    """The left, right, upper or lower one; the middle line of an odd side belongs to each."""
    flipped, lying = jax.random.bernoulli(key, 0.5, (2,))
    half = jnp.where(flipped, _centres(side) >= 0.5, _centres(side) <= 0.5)
    half = jnp.broadcast_to(half[None, :], (side, side))
    return jnp.where(lying, half.T, half)


def _reflected(place: Array) -> Array:
    """Places of the line brought into [0, 1] by mirrors at both ends."""
    return 1.0 - jnp.abs(1.0 - place % 2.0)


def _centres(side: int) -> Float[Array, "side"]:
    """Those of the pixels of a picture that reaches from 0 to 1."""
    return (jnp.arange(side) + 0.5) / side
