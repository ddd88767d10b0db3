"""Embeddings as CLIP gives them and as networks take them."""

from jax import numpy as jnp

from diffjax.typing import Embeddings


def unit_length(embeddings: Embeddings) -> Embeddings:
    """Their directions."""
    return embeddings / jnp.maximum(jnp.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-8)


def unit_variance(embeddings: Embeddings) -> Embeddings:
    """Of unit length on the whole; of unit variance each value, as a layer expects its inputs."""
    return embeddings * embeddings.shape[-1] ** 0.5
