"""Sums over space, and broadcasts over space that have such sums as their transpose.

XLA's reductions of other axes than the last are slow on a CPU. Large maps are therefore folded there: parts of a map
are added elementwise until few pixels are left. A barrier keeps XLA from fusing the computation of the map with these
sums, which would be slow. On accelerators both functions are a plain sum and a plain broadcast.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.target import is_cpu

_FOLD, _SMALLEST = 4, 256  # parts of a fold; pixels of the smallest map that is folded


@jax.custom_jvp
def sum_over_space(x: Float[Array, "B *space C"]) -> Float[Array, "B C"]:
    """Returns the sum of each channel over space."""
    channels, folds = x.shape[-1], _folds(x.shape[1:-1], x.dtype)
    if folds:
        x = jax.lax.optimization_barrier(x)
    for _ in range(folds):
        first, *others = jnp.split(x.reshape(len(x), -1, channels), _FOLD, axis=1)
        x = sum(others, first)
    return x.sum(tuple(range(1, x.ndim - 1)))


@sum_over_space.defjvp
def _sum_over_space_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The tangent is a plain sum, whose transpose is a broadcast."""
    (x,), (dx,) = primals, tangents
    return sum_over_space(x), dx.sum(tuple(range(1, dx.ndim - 1)))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def repeat_over_space(x: Float[Array, "B C"], space: tuple[int, ...]) -> Float[Array, "B *space C"]:
    """Returns an array of constant maps with the sides `space`; reverse mode sums over space as `sum_over_space`."""
    return jnp.broadcast_to(jnp.expand_dims(x, range(1, 1 + len(space))), (len(x), *space, x.shape[-1]))


@repeat_over_space.defjvp
def _repeat_over_space_jvp(
    space: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """The tangent is concatenated from repetitions, whose transpose adds parts elementwise."""
    (x,), (dx,) = primals, tangents
    folds = _folds(space, dx.dtype)
    dy = jnp.broadcast_to(dx[:, None], (len(dx), math.prod(space) // _FOLD**folds, dx.shape[-1]))
    for _ in range(folds):
        dy = jnp.concatenate([dy] * _FOLD, axis=1)
    if folds:
        dy = jax.lax.optimization_barrier(dy)
    y = repeat_over_space(x, space)
    return y, dy.reshape(y.shape)


def _folds(space: Sequence[int], dtype: DTypeLike) -> int:
    """Returns how often sums over a map are folded; 0 on accelerators, and in half precision, which XLA sums better."""
    size, folds = math.prod(space), 0
    if size < _SMALLEST or dtype != jnp.float32 or not is_cpu():
        return 0
    while size % _FOLD == 0 and size >= _FOLD**2:
        size, folds = size // _FOLD, folds + 1
    return folds
