"""The mean and the covariance of features that arrive in batches, float64."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """Of `count` features.

    Attributes:
      scatter: the sum of the outer products of their deviations from the mean.
    """

    count: int
    mean: Float[np.ndarray, "D"]
    scatter: Float[np.ndarray, "D D"]

    @property
    def covariance(self) -> Float[np.ndarray, "D D"]:
        """Unbiased. Raises ValueError of fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance is estimated from at least 2 features, not {self.count}")
        return self.scatter / (self.count - 1)


def of(features: Float[np.ndarray, "N D"]) -> Moments:
    """Those of one batch, N >= 1."""
    first = features[0].astype(np.float64)
    deviations = features - first  # before anything is summed: a mean far from zero costs no digits
    shift = deviations.mean(0)
    deviations -= shift
    return Moments(len(features), first + shift, deviations.T @ deviations)


def merge(a: Moments, b: Moments) -> Moments:
    """Those of both batches together, so that a stream is a fold of merges: Chan, Golub & LeVeque 1983."""
    count = a.count + b.count
    step = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(step, step) * (a.count * b.count / count)
    return Moments(count, a.mean + step * (b.count / count), scatter)
