"""Maximum mean discrepancy between two sets of features; with a cubic kernel it is the kernel inception distance."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffjax.metrics.resampling import Estimate

Kernel = Callable[[Float[np.ndarray, "N D"], Float[np.ndarray, "M D"]], Float[np.ndarray, "N M"]]


def cubic(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "N M"]:
    """Computes (x . y / D + 1)^3.

    Reference: Binkowski et al. 2018, sec. 4.
    """
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # ten times as fast as a power


def gaussian(bandwidth: float) -> Kernel:
    """Returns the kernel exp(-|x - y|^2 / (2 bandwidth^2)); CMMD uses bandwidth 10 (Jayasumana et al. 2024)."""

    def kernel(x, y):
        squared = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)[None] - 2 * x @ y.T
        return np.exp(-np.maximum(squared, 0.0) / (2 * bandwidth**2))

    return kernel


class _Parts(NamedTuple):
    """A squared discrepancy of two sets and the variances of its Hoeffding decomposition (Serfling 1980, sec. 5.2).

    Attributes:
      value: unbiased estimate.
      single: variance of the mean kernel difference over the features of each set, unbiased.
      pairs: variance of the interaction, the rest of the kernel: within each set, and across.
    """

    value: float
    single: tuple[float, float]
    pairs: tuple[float, float, float]


def squared_mmd(
    a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"], kernel: Kernel, *, unbiased: bool = True
) -> float:
    """Computes E k(a, a') + E k(b, b') - 2 E k(a, b), float64.

    Args:
      a: features [N, D].
      b: features [M, D].
      kernel: maps two sets of features to their kernel matrix.
      unbiased: eq. 3, which may be below zero; otherwise eq. 5, which is above zero for equal distributions.

    Reference: Gretton et al. 2012.
    """
    a, b = (x.astype(np.float64) for x in (a, b))

    def within(x):
        pairs = kernel(x, x)
        return (pairs.sum() - np.trace(pairs)) / (len(x) * (len(x) - 1)) if unbiased else pairs.mean()

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def kernel_distance(
    a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"], *, subsets: int = 100, subset_size: int = 1000, seed: int
) -> Estimate:
    """Computes the kernel inception distance, unbiased: the mean over pairs of random subsets.

    Sets with few pairs of features are compared as a whole: that is the mean over all their subsets, and faster. The
    expected value does not depend on the subset size. An unbiased estimate of a distance near 0 may be below 0.

    The standard error is not the published deviation over subsets. It is that of the value with other sets: the
    variance of a U-statistic (Hoeffding 1948; `discrepancy_variance`) at the full sizes, plus the variance of a mean
    over finitely many subsets.

    100 subsets of 1000 with D = 2048 take 15 seconds on two cores.

    Args:
      a: features [N, D].
      b: features [M, D].
      subsets: number of subsets, unless the whole sets have at most 10 times the pairs of a subset.
      subset_size: features in a subset, at most those of the smaller set.
      seed: of the subsets.

    Raises:
      ValueError: a set has fewer than 4 features, or there are no subsets.

    Reference: Binkowski et al. 2018, sec. 4.
    """
    size = min(subset_size, len(a), len(b))
    if size < 4 or subsets < 1:
        raise ValueError(f"no {subsets} subsets of {size} of {len(a)} and {len(b)} features")
    rng = np.random.default_rng(seed)
    pairs = len(a) ** 2 + len(a) * len(b) + len(b) ** 2
    if pairs <= min(subsets, 10) * 3 * size**2:
        parts = [_parts(a, b, cubic)]
    else:
        parts = []
        for _ in range(subsets):
            subset_a, subset_b = (x[rng.choice(len(x), size, replace=False)] for x in (a, b))
            parts.append(_parts(subset_a, subset_b, cubic))
    values = np.array([each.value for each in parts])
    variance = discrepancy_variance(parts, len(a), len(b))
    if len(parts) > 1:
        variance += values.var(ddof=1) / len(parts)
    return Estimate(float(values.mean()), float(np.sqrt(variance)))


def mmd_error(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"], kernel: Kernel) -> float:
    """Computes the standard error of `squared_mmd` with other sets of the same sizes, each at least 4."""
    return float(np.sqrt(discrepancy_variance([_parts(a, b, kernel)], len(a), len(b))))


def discrepancy_variance(parts: Sequence[_Parts], count_a: int, count_b: int) -> float:
    """Computes the variance of an unbiased squared discrepancy of N and M features.

    4 z_a / N + 4 z_b / M + 2 g_a / (N (N - 1)) + 2 g_b / (M (M - 1)) + 4 g_ab / (N M), where z is the variance of the
    mean kernel difference over features and g that of the interaction of the kernel.

    Args:
      parts: estimates of z and g, which are averaged; averages of z below 0, possible for equal distributions, become
        0.
      count_a: N.
      count_b: M.

    Reference: Hoeffding 1948.
    """
    single_a, single_b = np.maximum(np.mean([each.single for each in parts], axis=0), 0.0)
    within_a, within_b, across = np.mean([each.pairs for each in parts], axis=0)
    n, m = count_a, count_b
    first = 4 * single_a / n + 4 * single_b / m
    return float(first + 2 * within_a / (n * (n - 1)) + 2 * within_b / (m * (m - 1)) + 4 * across / (n * m))


def _parts(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"], kernel: Kernel) -> _Parts:
    """Decomposes the squared discrepancy of two sets of at least 4 features each."""
    a, b = (x.astype(np.float64) for x in (a, b))
    across = kernel(a, b)
    within = [_within(kernel(x, x)) for x in (a, b)]
    across_noise = _interaction(across)
    single, value = [], -2 * across.mean()
    for (rows, noise), other, partners in zip(within, (across.mean(1), across.mean(0)), (b, a), strict=True):
        value += rows.mean()
        witness = rows - other  # Gretton et al. 2012, sec. 2.3
        # The noise of finitely many partners in each row mean is not part of the variance of the mean kernel.
        single.append(float(witness.var(ddof=1) - noise / (len(rows) - 1) - across_noise / len(partners)))
    return _Parts(float(value), (single[0], single[1]), (within[0][1], within[1][1], across_noise))


def _within(pairs: Float[np.ndarray, "N N"]) -> tuple[Float[np.ndarray, " N"], float]:
    """Returns the mean kernel of each feature with the others, and the variance of the interaction, unbiased.

    Fits k_ij = m + r_i + r_j to the pairs i != j by least squares; N (N - 3) / 2 degrees of freedom remain.
    """
    count = len(pairs)
    pairs = pairs.copy()
    np.fill_diagonal(pairs, 0.0)
    rows = pairs.sum(1) / (count - 1)
    effect = (rows - rows.mean()) * (count - 1) / (count - 2)
    residual = pairs - rows.mean() - effect[:, None] - effect[None, :]
    np.fill_diagonal(residual, 0.0)
    return rows, float(np.sum(residual**2) / (count * (count - 3)))


def _interaction(pairs: Float[np.ndarray, "N M"]) -> float:
    """Returns the residual mean square of a two-way layout: the unbiased variance of the interaction."""
    residual = pairs - pairs.mean(1, keepdims=True) - pairs.mean(0, keepdims=True) + pairs.mean()
    return float(np.sum(residual**2) / ((len(pairs) - 1) * (pairs.shape[1] - 1)))
