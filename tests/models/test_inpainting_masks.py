"""Random masks for inpainting: their kinds and sizes."""

import functools

import jax
import numpy as np
import pytest
from scipy import ndimage

from diffjax.models.diffusion.inpainting_masks import KINDS, mask_of_kind, random_mask

COUNT = 1000


@functools.cache
def masks(side: int) -> np.ndarray:
    """Returns masks [COUNT, side, side]."""
    sample = jax.jit(jax.vmap(lambda key: random_mask(key, side)))
    return np.asarray(sample(jax.random.split(jax.random.key(0), COUNT)))[..., 0]


def kind(mask: np.ndarray) -> str:
    """Returns the kind of a mask, from its shape."""
    side = len(mask)
    if mask.all():
        return "everything"
    halves = [np.arange(side) < side // 2, np.arange(side) >= side // 2]
    halves = [np.broadcast_to(half, mask.shape) for half in halves]
    if any(np.array_equal(mask, half) for half in (*halves, *(half.T for half in halves))):
        return "half"
    box = ndimage.find_objects(mask.astype(int))[0]
    return "rectangle" if mask[box].all() else "strokes"


def test_the_kinds_are_equally_likely():
    masked = [kind(mask) for mask in masks(24)]
    for name in ("everything", "half", "rectangle", "strokes"):
        share = masked.count(name) / COUNT
        assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / COUNT), name


@pytest.mark.parametrize("side", [1, 7, 24])
def test_masks_are_binary_and_never_empty(side):
    assert set(np.unique(masks(side))) <= {0.0, 1.0}
    assert masks(side).any(axis=(1, 2)).all()


def test_half_of_the_image_is_masked_on_average_at_every_position():
    assert 0.45 < masks(24).mean() < 0.55
    everywhere = masks(24).mean(axis=0)
    assert everywhere.min() > 0.35 and everywhere.max() < 0.65


@functools.cache
def of_kind(name: str) -> np.ndarray:
    """Returns masks [COUNT, 24, 24] of a kind."""
    sample = jax.jit(jax.vmap(lambda key: mask_of_kind(key, 24, name)))
    return np.asarray(sample(jax.random.split(jax.random.key(1), COUNT)))[..., 0]


def test_masks_of_a_kind_are_of_this_kind():
    for name in KINDS:
        kinds = [kind(mask) for mask in of_kind(name)]
        assert kinds.count(name) > 0.95 * COUNT, name  # a stroke may be a rectangle


@pytest.mark.parametrize(
    ("kind", "least", "most", "mean"), [("rectangle", 0.06, 0.57, 0.25), ("strokes", 0.01, 0.6, 0.2)]
)
def test_sizes_of_each_kind_of_mask(kind, least, most, mean):
    masked = of_kind(kind)
    areas = masked.mean(axis=(1, 2))
    assert areas.min() >= least and areas.max() <= most
    assert abs(areas.mean() - mean) < 0.03 and areas.std() > 0.05
    if kind == "rectangle":
        assert all(mask[ndimage.find_objects(mask.astype(int))[0]].all() for mask in masked)


def test_all_four_halves_occur():
    halves = {mask.tobytes() for mask in masks(24) if kind(mask) == "half"}
    assert len(halves) == 4


def test_masks_depend_on_the_key_alone():
    uneven = [mask.tobytes() for mask in masks(24) if kind(mask) in ("rectangle", "strokes")]
    assert len(set(uneven)) > 0.95 * len(uneven)
    keys = jax.random.split(jax.random.key(0), COUNT)
    single = jax.jit(random_mask, static_argnums=1)
    for i in range(8):
        masked = np.asarray(single(keys[i], 24))
        assert masked.shape == (24, 24, 1)
        np.testing.assert_array_equal(masked[..., 0], masks(24)[i])
