"""Random numbers of a batch: one key per example, so that an example does not depend on the batch around it."""

import jax
from jax import numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

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
