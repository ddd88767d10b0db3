"""Alignment scores of images and texts against their definitions, pair by pair."""

import numpy as np
import pytest

from diffjax.metrics import alignment


def embedded(count, seed, dimensions=6):
    x = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_clip_score_is_a_hundred_cosines_and_never_below_zero():
    images, texts = embedded(40, 0), embedded(40, 1)
    wanted = [
        100 * max(0.0, float(a @ b) / np.sqrt(float(a @ a) * float(b @ b))) for a, b in zip(images, texts, strict=True)
    ]
    found = alignment.clip_score(images, texts)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (found == 0).any() and (found > 0).any()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_recall_equals_that_of_a_sorted_list(k):
    queries, answers = embedded(12, 2), embedded(12, 3)
    same = np.eye(12, dtype=bool)
    same[3, 4] = same[4, 3] = True  # two with one caption: either will do
    wanted = [
        bool(set(sorted(range(12), key=lambda j, q=q: -float(q @ answers[j]))[:k]) & set(np.flatnonzero(same[i])))
        for i, q in enumerate(queries)
    ]
    assert alignment.recall(queries, answers, k=k, same=same).tolist() == [float(w) for w in wanted]


def test_ties_are_not_retrieved():
    alike = np.tile(embedded(1, 0), (5, 1))
    assert alignment.recall(alike, alike, k=4, same=np.eye(5, dtype=bool)).sum() == 0
    assert alignment.recall(alike, alike, k=5, same=np.eye(5, dtype=bool)).sum() == 5


def test_best_and_worst_precision():
    texts = embedded(30, 4)
    captions = [str(i) for i in range(30)]
    assert alignment.retrieval_precision(texts, texts, captions, seed=0).all()
    assert not alignment.retrieval_precision(-texts, texts, captions, seed=0).any()


def test_precision_by_chance_is_one_over_the_candidates():
    captions = [str(i) for i in range(2000)]
    found = alignment.retrieval_precision(embedded(2000, 5, 32), embedded(2000, 6, 32), captions, candidates=10, seed=0)
    assert abs(found.mean() - 0.1) < 4 * np.sqrt(0.09 / 2000)


def test_other_images_of_the_same_caption_are_not_candidates():
    """An image cannot be nearer to its own text than to an equal one."""
    texts = np.repeat(embedded(5, 7), 4, axis=0)
    captions = [str(i // 4) for i in range(20)]
    assert alignment.retrieval_precision(texts, texts, captions, seed=0).all()
