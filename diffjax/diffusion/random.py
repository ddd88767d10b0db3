"""Random numbers of a batch: one key per example, so that an example does not depend on the batch around it."""

import jax
from jax import lax
from jax import numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from diffjax.diffusion.noise import for_examples

Keys = Key[Array, "B"]


def split_each(keys: Keys, num: int = 2) -> tuple[Keys, ...]:
    """Splits the key of each example: returns `num` arrays [B] of keys, and consumes `keys`."""
    return tuple(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(keys), 1, 0))


def fold_in_each(keys: Keys, data: Int[Array, ""] | Int[Array, " B"] | int) -> Keys:
    """Folds integers into the key of each example.

    Args:
      keys: [B], not consumed.
      data: one integer for all examples, or one per example [B].

    Returns:
      Keys [B].
    """
    return jax.vmap(jax.random.fold_in, (0, 0 if jnp.ndim(data) else None))(keys, data)


def normal_each(keys: Keys, shape: tuple[int, ...], dtype: DTypeLike = float) -> Float[Array, "B ..."]:
    """Samples N(0, I): one example of `shape` per key. Consumes `keys`."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


_BROWNIAN_DEPTH = 20  # times are rounded to multiples of 2^-20


def brownian_increment(
    keys: Keys,
    start: Float[Array, ""] | Float[Array, " B"],
    end: Float[Array, ""] | Float[Array, " B"],
    shape: tuple[int, ...],
    dtype: DTypeLike = float,
) -> Float[Array, "B ..."]:
    """Returns (W(start) - W(end)) / sqrt(start - end), standard normal, of one Brownian path per key.

    Increments of disjoint intervals are independent, and a path depends on its key alone. It is refined by halves, with
    one normal per level of the hierarchy.

    Args:
      keys: [B]; the path's, not consumed.
      start: later time, in [0, 1], or one per example [B].
      end: earlier time, of the same shape. Closer to `start` than 2^-20, the increment is 0.
      shape: of one example.
      dtype: of the result.

    Reference: Levy's construction; the virtual Brownian tree of Li et al. 2020, "Scalable gradients for stochastic
    differential equations".
    """
    cells = 2**_BROWNIAN_DEPTH
    indices = jnp.round(jnp.stack([start, end]) * cells).astype(jnp.int32)

    def refine(level, paths):
        width = _BROWNIAN_DEPTH - level  # log2 of the cells of an interval at this level
        place = (indices % (1 << width)) / (1 << width)
        height = (1 - jnp.abs(2 * place - 1)) * jnp.exp2(-level / 2 - 1)  # of the bridge's deviation
        level_keys = fold_in_each(keys, level + 1)
        noise = [normal_each(fold_in_each(level_keys, index >> width), shape, dtype) for index in indices]
        return paths + jnp.stack([for_examples(h, n) * n for h, n in zip(height, noise, strict=True)])

    whole = normal_each(fold_in_each(keys, 0), shape, dtype)
    paths = jnp.stack([for_examples(index / cells, whole) * whole for index in indices])
    later, earlier = lax.fori_loop(0, _BROWNIAN_DEPTH, refine, paths)
    gap = (indices[0] - indices[1]) / cells
    return ((later - earlier) * for_examples(jnp.where(gap > 0, lax.rsqrt(gap), 0.0), whole)).astype(dtype)
