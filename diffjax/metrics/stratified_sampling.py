"""Stratified subsampling for sums with a few large, high-variance terms."""

import numpy as np
from jaxtyping import Float, Int


def sample_terms(
    rng: np.random.Generator, terms: int, count: int
) -> tuple[Int[np.ndarray, " count"], Float[np.ndarray, " count"]]:
    """Samples `count` of the indices 0, ..., `terms` - 1, with weights that make the sum of terms unbiased.

    Returns the last index, and one index from each of `count` - 1 strata whose lengths fall towards the end. This suits
    the variational bound, whose terms near the image are large and change fast. With `count` = `terms`: all indices,
    weights 1.

    Args:
      rng: random generator.
      terms: number of terms.
      count: number of samples, from 2 to `terms`, or `terms` itself.

    Returns:
      Indices and weights.

    Raises:
      ValueError: `count` is outside its range.
    """
    if not min(2, terms) <= count <= terms:
        raise ValueError(f"count={count}: must be from 2 to {terms}, the number of terms")
    rank = np.arange(count)
    edges = np.append(0, np.maximum(1 + (terms - 1) * (rank / max(count - 1, 1)) ** 2, 1 + rank)).astype(int)
    width = np.diff(edges)
    from_the_end = edges[:-1] + rng.integers(0, width)
    return terms - 1 - from_the_end, width.astype(np.float64)
