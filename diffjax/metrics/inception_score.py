"""The inception score: whether samples are sure of their class and of many classes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp


class InceptionScore(NamedTuple):
    """Over splits, as published."""

    mean: float  # from 1 to the number of classes
    standard_deviation: float  # of the splits' scores, not of their mean


def inception_score(logits: Float[np.ndarray, "N K"], *, splits: int = 10) -> InceptionScore:
    """exp of the mean KL(p(y | x) || p(y)), where p(y) is the mean over a split: Salimans et al. 2016, sec. 4.

    Splits are runs of the samples as they come, and must each be a sample of all: rows sorted by class score too low.
    Biased downward, the more the fewer samples there are in a split. Logits are finite.
    Raises ValueError of fewer samples than splits.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{len(logits)} samples cannot be split into {splits}")
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    scores = []
    for part in np.array_split(log_p, splits):
        log_marginal = logsumexp(part, axis=0, keepdims=True) - np.log(len(part))
        scores.append(np.exp(np.mean(np.sum(np.exp(part) * (part - log_marginal), axis=1))))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
