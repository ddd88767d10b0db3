"""The Frechet distance between Gaussians fitted to two sets of features."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """Of a set of features, float64."""

    mean: Float[np.ndarray, "D"]
    covariance: Float[np.ndarray, "D D"]


def moments(features: Float[np.ndarray, "N D"]) -> Moments:
    """Sample mean and unbiased covariance; N must be at least 2."""
    return Moments(features.mean(0), np.cov(features, rowvar=False))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): Dowson & Landau 1982, eq. 16; FID on Inception features.

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), a symmetric matrix, so
    singular covariances do no harm.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(np.maximum(cross, 0.0)).sum()
    return float(np.sum((a.mean - b.mean) ** 2) + trace)
