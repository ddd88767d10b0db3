"""Spectral normalisation (Miyato et al. 2018) of all kernels of a network."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jaxtyping import Float

from diffjax.nn.layers import unit_norm
from diffjax.typing import PRNGKey

Params = dict[str, Any]
Memory = dict[str, Any]  # u of the paper, float32 [O], for every kernel [..., O] of `Params`

_EPS = 1e-12  # smallest norm that a vector is divided by


def init(key: PRNGKey, params: Params) -> Memory:
    """Returns a random unit vector for every leaf named "kernel"; the key is consumed."""
    kernels: dict[tuple, Array] = {path: leaf for path, leaf in _flat(params).items() if path[-1] == "kernel"}
    keys = jax.random.split(key, len(kernels))
    vectors = (
        unit_norm(jax.random.normal(k, leaf.shape[-1:]), _EPS) for k, leaf in zip(keys, kernels.values(), strict=True)
    )
    return unflatten_dict(dict(zip(kernels, vectors, strict=True)))


def normalized(params: Params, memory: Memory) -> tuple[Params, Memory]:
    """Divides every kernel by its largest singular value, estimated by one power iteration.

    The gradient flows through sigma = u W v by W alone (eq. 12).

    Args:
      params: parameters; a kernel [..., O] is a matrix with O columns. Zero kernels are returned unchanged.
      memory: singular vectors of the last iteration, see `init`.

    Returns:
      Normalised parameters, and the vectors after this iteration.

    Reference: Miyato et al. 2018, algorithm 1 (transposed).
    """
    leaves, vectors = _flat(params), _flat(memory)
    for path, u in vectors.items():
        matrix = leaves[path].reshape(-1, u.shape[0])
        v, u = jax.lax.stop_gradient(_power_iteration(matrix, u))
        sigma = v @ matrix @ u
        leaves[path] = leaves[path] / jnp.where(sigma > 0, sigma, 1.0)
        vectors[path] = u
    return unflatten_dict(leaves), unflatten_dict(vectors)


def _flat(tree: Mapping[str, Any]) -> dict[tuple, Any]:
    """Returns the leaves of nested dictionaries by their paths."""
    return cast(dict[tuple, Any], flatten_dict(tree))


def _power_iteration(
    matrix: Float[Array, "I O"], u: Float[Array, " O"]
) -> tuple[Float[Array, " I"], Float[Array, " O"]]:
    v = unit_norm(matrix @ u, _EPS)
    new = matrix.T @ v
    return v, jnp.where((new != 0).any(), unit_norm(new, _EPS), u)
