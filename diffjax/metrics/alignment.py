"""Alignment of images and texts by their CLIP embeddings, of unit length."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

Embedded = Float[np.ndarray, "N D"]


def clip_score(images: Embedded, texts: Embedded) -> Float[np.ndarray, " N"]:
    """Computes 100 max(cosine, 0) of each image and its text.

    Hessel et al. use the factor 2.5; tables of text-to-image models use 100.

    Reference: Hessel et al. 2021, eq. 1.
    """
    return 100 * np.maximum(np.sum(images.astype(np.float64) * texts, axis=-1), 0.0)


def recall(queries: Embedded, answers: Embedded, *, k: int, same: Bool[np.ndarray, "N N"]) -> Float[np.ndarray, " N"]:
    """Computes recall@k per query: 1 if one of the correct answers is among the k nearest, else 0.

    A tie counts as a miss, so that embeddings that are all equal retrieve nothing.

    Args:
      queries: embeddings [N, D].
      answers: embeddings [N, D].
      k: number of nearest answers.
      same: whether answer j is correct for query i, [N, N].

    Returns:
      0 or 1 for each query, whose mean is recall@k.
    """
    similarity = queries.astype(np.float64) @ answers.T.astype(np.float64)
    best = np.where(same, similarity, -np.inf).max(axis=1)
    nearer = (~same & (similarity >= best[:, None])).sum(axis=1)
    return (nearer < k).astype(np.float64)


def retrieval_precision(
    images: Embedded, texts: Embedded, captions: Sequence[str], *, candidates: int = 100, seed: int
) -> Float[np.ndarray, " N"]:
    """Computes R-precision per image: 1 if its own text is nearer than all other candidates, else 0.

    Args:
      images: embeddings [N, D].
      texts: embeddings of their captions [N, D].
      captions: the captions.
      candidates: number of texts, of which all but one are sampled without replacement from different captions; all
        different captions if there are fewer.
      seed: of the sampling.

    Returns:
      0 or 1 for each image.

    Reference: Xu et al. 2018, sec. 4.1.
    """
    rng = np.random.default_rng(seed)
    _, firsts, kind = np.unique(np.asarray(captions), return_index=True, return_inverse=True)
    similarity = images.astype(np.float64) @ texts[firsts].T.astype(np.float64)
    correct = np.zeros(len(images))
    for i, own_kind in enumerate(kind):
        others = np.delete(np.arange(len(firsts)), own_kind)
        others = rng.choice(others, min(candidates - 1, len(others)), replace=False)
        correct[i] = np.all(similarity[i, own_kind] > similarity[i, others])
    return correct
