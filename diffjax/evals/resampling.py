"""By how much an estimate would differ with other samples, from the samples at hand."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class Estimate(NamedTuple):
    value: float
    standard_error: float | None  # None: not estimated


def share(right: Bool[np.ndarray, "N"]) -> Estimate:
    """How many of N independent tries are right; the error is the binomial distribution's."""
    value = float(np.mean(right))
    return Estimate(value, float(np.sqrt(value * (1 - value) / len(right))))


def bootstrap(statistic: Callable[..., float], arrays: Sequence[np.ndarray], *, repeats: int, seed: int) -> float:
    """The standard error of `statistic(*arrays)`: its standard deviation over resamples, Efron 1979.

    Arrays are aligned [N, ...]: a resample is N of the rows, drawn with replacement, the same ones of every array.
    A resample repeats rows, so a statistic that counts on distinct ones is biased on it (a Frechet distance upward, a
    nearest neighbour's towards zero): of the resamples' values only the spread is used.

    Raises ValueError where the arrays differ in length or there are fewer than two repeats.
    """
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or repeats < 2:
        raise ValueError(f"{repeats} resamples of arrays of lengths {sorted(lengths)}")
    (count,) = lengths
    rng = np.random.default_rng(seed)
    draws = (rng.integers(count, size=count) for _ in range(repeats))
    return float(np.std([statistic(*(array[rows] for array in arrays)) for rows in draws], ddof=1))
