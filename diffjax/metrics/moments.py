"""Mean and covariance of features that arrive in batches, float64."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """Moments of a set of features.

    Attributes:
      count: number of features.
      mean: of the features.
      scatter: sum of the outer products of their deviations from the mean.
    """

    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Float[np.ndarray, " D"]
    scatter: Float[np.ndarray, "D D"]

    @property
    def covariance(self) -> Float[np.ndarray, "D D"]:
        """Unbiased covariance. Raises ValueError for fewer than 2 features."""
        if self.count < 2:
            raise ValueError(f"count={self.count}: a covariance requires at least 2 features")
        return self.scatter / (self.count - 1)


def from_features(features: Float[np.ndarray, "N D"]) -> Moments:
    """Computes the moments of one batch, N >= 1."""
    first = features[0].astype(np.float64)
    deviations = features - first  # subtracted before sums, so that a mean far from zero loses no precision
    shift = deviations.mean(0)
    deviations -= shift
    return Moments(len(features), first + shift, deviations.T @ deviations)


def from_covariance(mean: Float[np.ndarray, " D"], covariance: Float[np.ndarray, "D D"]) -> Moments:
    """Returns moments with a given mean and covariance, of an unknown number of features, for Fréchet distances."""
    return Moments(2, np.asarray(mean, np.float64), np.asarray(covariance, np.float64))


def merge(a: Moments, b: Moments) -> Moments:
    """Returns the moments of both sets together, so that a stream is a fold of merges.

    Reference: Chan, Golub & LeVeque 1983.
    """
    count = a.count + b.count
    difference = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(difference, difference) * (a.count * b.count / count)
    return Moments(count, a.mean + difference * (b.count / count), scatter)
