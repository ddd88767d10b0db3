"""Spectral normalisation (Miyato et al. 2018) of every kernel of a tree of parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jaxtyping import Float

from diffjax.typing import PRNGKey

Params = dict[str, Any]
Memory = dict[str, Any]  # where `Params` has a kernel [..., O]: float32 [O], the paper's u


def init(key: PRNGKey, params: Params) -> Memory:
    """A random unit vector for every leaf named "kernel"."""
    kernels = {path: leaf for path, leaf in flatten_dict(params).items() if path[-1] == "kernel"}
    keys = jax.random.split(key, len(kernels))
    vectors = (jax.random.normal(k, leaf.shape[-1:]) for k, leaf in zip(keys, kernels.values(), strict=True))
    return unflatten_dict(dict(zip(kernels, map(_unit, vectors), strict=True)))


def normalized(params: Params, memory: Memory) -> tuple[Params, Memory]:
    """Every kernel over its largest singular value, as one more power iteration finds it, and the vectors after it.

    A kernel is the matrix [..., O] (algorithm 1, transposed). The gradient flows through sigma = u W v by W alone (eq.
    12). A kernel of zeros stays as it is.
    """
    leaves, vectors = flatten_dict(params), flatten_dict(memory)
    for path, u in vectors.items():
        matrix = leaves[path].reshape(-1, u.shape[0])
        v, u = jax.lax.stop_gradient(_power_iteration(matrix, u))
        sigma = v @ matrix @ u
        leaves[path] = leaves[path] / jnp.where(sigma > 0, sigma, 1.0)
        vectors[path] = u
    return unflatten_dict(leaves), unflatten_dict(vectors)


def _power_iteration(matrix: Float[Array, "I O"], u: Float[Array, "O"]) -> tuple[Float[Array, "I"], Float[Array, "O"]]:
    v = _unit(matrix @ u)
    new = matrix.T @ v
    return v, jnp.where((new != 0).any(), _unit(new), u)


def _unit(x: Float[Array, "N"]) -> Float[Array, "N"]:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
