"""Which of many terms to evaluate, where their sum is wanted and the last ones are the largest and most uneven."""

import numpy as np
from jaxtyping import Float, Int


def draw_terms(
    rng: np.random.Generator, terms: int, count: int
) -> tuple[Int[np.ndarray, "count"], Float[np.ndarray, "count"]]:
    """`count` of the indices 0, ..., `terms` - 1, and weights with which their sum is unbiased for the sum of all.

    The last index, and one from each of `count` - 1 runs whose lengths fall towards the end: for the variational
    bound, whose terms near the image are large and change fast. All indices, with weight one, where `count` is `terms`.
    Raises ValueError unless `count` is 2 to `terms`, or `terms` itself.
    """
    if not min(2, terms) <= count <= terms:
        raise ValueError(f"of {terms} terms 2 to {terms} can be drawn, not {count}")
    rank = np.arange(count)
    edges = np.append(0, np.maximum(1 + (terms - 1) * (rank / max(count - 1, 1)) ** 2, 1 + rank)).astype(int)
    width = np.diff(edges)
    from_the_end = edges[:-1] + rng.integers(0, width)
    return terms - 1 - from_the_end, width.astype(np.float64)
