"""The inception score: confidence and diversity of the predicted classes of samples."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp


class InceptionScore(NamedTuple):
    """Statistics over splits, as published.

    Attributes:
      mean: from 1 to the number of classes.
      standard_deviation: of the scores of the splits, not of their mean.
    """

    mean: float
    standard_deviation: float


def inception_score(logits: Float[np.ndarray, "N K"], *, splits: int = 10) -> InceptionScore:
    """Computes exp of the mean KL(p(y | x) || p(y)), where p(y) is the mean over a split.

    Splits are consecutive, so samples must not be sorted by class: the score would be too low. Biased downward, more so
    the fewer samples a split has.

    Args:
      logits: finite, [N, K].
      splits: number of splits.

    Raises:
      ValueError: there are fewer samples than splits.

    Reference: Salimans et al. 2016, sec. 4.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{len(logits)} samples cannot be split into {splits}")
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    scores = []
    for part in np.array_split(log_p, splits):
        log_marginal = logsumexp(part, axis=0, keepdims=True) - np.log(len(part))
        scores.append(np.exp(np.mean(np.sum(np.exp(part) * (part - log_marginal), axis=1))))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
