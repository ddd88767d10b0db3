"""How well pictures and texts go together, by embeddings of unit length: what CLIP is measured by, and measures."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

Embedded = Float[np.ndarray, "N D"]


def clip_score(images: Embedded, texts: Embedded) -> Float[np.ndarray, "N"]:
    """100 max(cosine, 0) of each picture and its text.

    Hessel et al. 2021, eq. 1, has 2.5 in the place of 100; this is how the tables of text-to-image systems have it.
    """
    return 100 * np.maximum(np.sum(images.astype(np.float64) * texts, axis=-1), 0.0)


def recall(queries: Embedded, answers: Embedded, *, k: int, same: Bool[np.ndarray, "N N"]) -> Float[np.ndarray, "N"]:
    """Whether one of the `same` answers is among the k nearest of all, of each query: recall@k is the mean.

    A tie is counted against the answer, so that embeddings that are all alike retrieve nothing.
    """
    similarity = queries.astype(np.float64) @ answers.T.astype(np.float64)
    best = np.where(same, similarity, -np.inf).max(axis=1)
    nearer = (~same & (similarity >= best[:, None])).sum(axis=1)
    return (nearer < k).astype(np.float64)


def retrieval_precision(
    images: Embedded, texts: Embedded, captions: Sequence[str], *, candidates: int = 100, seed: int
) -> Float[np.ndarray, "N"]:
    """Whether each picture is nearer to its own text than to all others: R-precision (Xu et al. 2018, section 4.1).

    The others are `candidates` - 1 texts of other pictures, drawn without replacement among those whose caption is
    different; all of them where there are fewer.
    """
    rng = np.random.default_rng(seed)
    _, firsts, kind = np.unique(np.asarray(captions), return_index=True, return_inverse=True)
    similarity = images.astype(np.float64) @ texts[firsts].T.astype(np.float64)
    found = np.zeros(len(images))
    for i, own in enumerate(kind):
        others = np.delete(np.arange(len(firsts)), own)
        others = rng.choice(others, min(candidates - 1, len(others)), replace=False)
        found[i] = np.all(similarity[i, own] > similarity[i, others])
    return found
