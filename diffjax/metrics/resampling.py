"""Standard errors of estimates, from the samples of the estimate."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped


class Estimate(NamedTuple):
    """A value and its standard error.

    Attributes:
      value: None: not defined on these samples.
      standard_error: None: not estimated.
    """

    value: float | None
    standard_error: float | None


def mean(values: Float[np.ndarray, " N"], groups: Shaped[np.ndarray, " N"] | None = None) -> Estimate:
    """Computes a mean and its standard error.

    Args:
      values: N >= 2 values.
      groups: group of each value, such as its caption. Values of one group may be correlated, groups are independent:
        the error is the cluster-robust one (Liang & Zeger 1986, with G / (G - 1) for G groups). None: every value is
        its own group, and the error is the standard deviation over sqrt(N).

    Returns:
      The estimate; its standard error is None for fewer than 2 groups.
    """
    values = np.asarray(values, np.float64)
    deviations = values - values.mean()
    if groups is not None:
        deviations = np.bincount(np.unique(np.asarray(groups), return_inverse=True)[1], deviations)
    independent = len(deviations)
    if independent < 2:
        return Estimate(float(values.mean()), None)
    variance = np.sum(deviations**2) * independent / (independent - 1)
    return Estimate(float(values.mean()), float(np.sqrt(variance) / len(values)))


def square_root(estimate: Estimate) -> Estimate:
    """Returns the root of a non-negative estimate, with its error by the delta method: d sqrt(m) = dm / (2 sqrt(m))."""
    square, error = estimate
    root = float(np.sqrt(square or 0.0))
    return Estimate(root, error / (2 * root) if root and error is not None else error)


def proportion_with_error(success: Bool[np.ndarray, " N"], groups: Shaped[np.ndarray, " N"] | None = None) -> Estimate:
    """Computes the proportion of successes in N trials, and its standard error.

    The error is half the width of Wilson's score interval of one standard error:
    sqrt(p (1 - p) / N + 1 / (4 N^2)) / (1 + 1 / N). It equals the binomial error up to O(1 / N), and about 1 / (2 N)
    for a proportion of 0 or 1, for which the binomial error is 0.

    Args:
      success: N >= 1 trials.
      groups: group of each trial, as for `mean`: p (1 - p) / N becomes its squared error, and N the number of groups.

    Reference: Wilson 1927.
    """
    value = float(np.mean(success))
    independent = len(success)
    variance = value * (1 - value) / independent
    if groups is not None:
        independent = len(np.unique(np.asarray(groups)))
        variance = max(variance, (mean(success, groups).standard_error or 0.0) ** 2)
    error = np.sqrt(variance + 1 / (4 * independent**2)) / (1 + 1 / independent)
    return Estimate(value, float(error))


def jackknife(
    statistic: Callable[..., Float[np.ndarray, " K"]],
    samples: Shaped[np.ndarray, "N ..."],
    *,
    blocks: int = 10,
    seed: int,
) -> Float[np.ndarray, " K"]:
    """Computes the standard errors of K statistics by leaving out a random block of the samples at a time.

    sqrt((B - 1) / B sum_b (s_b - mean s)^2) over B blocks of floor(N / B) samples. Repeats no sample, unlike a
    bootstrap, so it suits statistics of nearest neighbours.

    Args:
      statistic: maps samples to K values.
      samples: [N, ...].
      blocks: B.
      seed: of the blocks.

    Raises:
      ValueError: there are fewer samples than blocks, or fewer than 2 blocks.

    Reference: Shao & Wu 1989 (delete-d).
    """
    size = len(samples) // blocks
    if blocks < 2 or size < 1:
        raise ValueError(f"{len(samples)} samples cannot be split into {blocks} blocks")
    order = np.random.default_rng(seed).permutation(len(samples))[: size * blocks].reshape(blocks, size)
    values = np.array([statistic(np.delete(samples, block, axis=0)) for block in order])
    return np.sqrt((blocks - 1) / blocks * np.sum((values - values.mean(0)) ** 2, axis=0))


def bootstrap(statistic: Callable[..., float], arrays: Sequence[np.ndarray], *, repeats: int, seed: int) -> float:
    """Computes the standard error of `statistic(*arrays)`: its standard deviation over resamples.

    A resample repeats rows, so a statistic of distinct rows is biased on it (a Fréchet distance upward, a distance to
    the nearest neighbour towards zero): only the spread of the resampled values is used.

    Args:
      statistic: maps the arrays to a value.
      arrays: aligned, [N, ...]: a resample is N of the rows with replacement, the same rows of every array.
      repeats: number of resamples, at least 2.
      seed: of the resamples.

    Raises:
      ValueError: the arrays differ in length, or there are fewer than 2 repeats.

    Reference: Efron 1979.
    """
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or repeats < 2:
        raise ValueError(f"{repeats} resamples of arrays of lengths {sorted(lengths)}")
    (count,) = lengths
    rng = np.random.default_rng(seed)
    draws = (rng.integers(count, size=count) for _ in range(repeats))
    return float(np.std([statistic(*(array[rows] for array in arrays)) for rows in draws], ddof=1))
