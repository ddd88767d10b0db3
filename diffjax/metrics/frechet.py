"""The Fréchet distance between Gaussians fitted to two sets of features, and its limit for infinitely many features.

The time goes to one `eigh` [D, D] per reference and one `eigvalsh` per distance to it: with D = 2048 on two cores about
6 and 3 seconds. Memory is a few float64 matrices [D, D].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffjax.metrics import moments
from diffjax.metrics.moments import Moments


def frechet_distance(a: Moments, b: Moments) -> float:
    """Computes |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) >= 0; on Inception features it is the FID.

    Accurate to about 1e-6 of the traces of the covariances, also for singular ones. Moments of N features give an
    upward bias that falls like 1 / N.

    Reference: Dowson & Landau 1982, eq. 16.
    """
    return distance_to(b)(a)


def distance_to(reference: Moments) -> Callable[[Moments], float]:
    """Returns a function that computes the Fréchet distance to `reference`, factoring its covariance once.

    With C_b = R R^T, the trace of the root is the sum of the roots of the eigenvalues of R^T C_a R, a symmetric matrix.
    """
    values, vectors = np.linalg.eigh(reference.covariance)
    root = vectors * _roots(values)
    trace = np.trace(reference.covariance)

    def distance(other: Moments) -> float:
        covariance = other.covariance
        cross = _roots(np.linalg.eigvalsh(root.T @ covariance @ root)).sum()
        gap = np.sum((other.mean - reference.mean) ** 2)
        return float(np.maximum(gap + np.trace(covariance) + trace - 2 * cross, 0.0))

    return distance


class Extrapolation(NamedTuple):
    """A least-squares line through distances against 1 / N.

    Attributes:
      value: at 1 / N = 0; may be below zero.
      standard_error: of `value`, from the residuals.
      sizes: N of each point.
      distances: of each point.
    """

    value: float
    standard_error: float
    sizes: Int[np.ndarray, " points"]
    distances: Float[np.ndarray, " points"]


def at_infinity(
    features: Float[np.ndarray, "N D"],
    distance: Callable[[Moments], float],
    *,
    seed: int,
    points: int = 15,
    smallest: int | None = None,
) -> Extrapolation:
    """Extrapolates a distance to infinitely many features, which removes its bias in N (FID-infinity).

    Fits a least-squares line in 1 / size to the distances of random subsets. The bias of the reference's own number of
    features remains.

    The line is the first term of a series in D / size, so `smallest` must not be far below D. For 500 features of equal
    variance with D = 64, the intercept is 1.3 too low from size 50, and 0.1 too low from size 166; the distance of all
    500 is 2.3 too high.

    Subsets overlap, so the value varies more than its standard error with other features: up to 2.5 times for
    Gaussians.

    Args:
      features: [N, D].
      distance: see `distance_to`.
      seed: of the subsets.
      points: number of subset sizes, evenly spaced from `smallest` to N; at least 3.
      smallest: smallest size, 2 <= `smallest` < N; None: the paper's N / 10, but at least min(2 D, N / 2).

    Returns:
      The extrapolated distance.

    Raises:
      ValueError: `smallest` or `points` is outside its range.

    Reference: Chong & Forsyth 2020.
    """
    count, dimension = features.shape
    start = max(count // 10, min(2 * dimension, count // 2)) if smallest is None else smallest
    if not (2 <= start < count and points >= 3):
        raise ValueError(f"no line through {points} sizes from {start} to {count}")
    rng = np.random.default_rng(seed)
    sizes = np.linspace(start, count, points).round().astype(int)
    subsets = (features[rng.permutation(count)[:size]] for size in sizes)
    distances = np.array([distance(moments.from_features(subset)) for subset in subsets])
    (_, intercept), covariance = np.polyfit(1 / sizes, distances, 1, cov=True)
    return Extrapolation(float(intercept), float(np.sqrt(covariance[1, 1])), sizes, distances)


def _roots(eigenvalues: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    """Returns roots of the eigenvalues of a positive semi-definite matrix; 0 for those within rounding of 0."""
    floor = 10 * np.finfo(np.float64).eps * eigenvalues.max()
    return np.sqrt(np.where(eigenvalues > floor, eigenvalues, 0.0))
