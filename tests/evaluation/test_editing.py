"""Metrics of inpainting and interpolation, of a sampler whose results are known."""

import dataclasses

import numpy as np
import pytest

from diffjax.evaluation import editing
from diffjax.evaluation.settings import Examples, Settings
from diffjax.runs.loading import load

COUNT, LEVEL = 12, 20  # images, grey levels
PAIRED = 2 * np.random.default_rng(0).integers(0, 100, (COUNT, 8, 8, 1))  # even, so that half way is a grey level


class Runner:
    """Returns the known region, LEVEL above the image elsewhere; or the mix of two images, plus the seed modulo 4."""

    def __init__(self, model, *, batch_size):
        del model
        assert batch_size <= COUNT

    def __call__(self, variables, seeds, conditions, settings):
        del variables
        Runner.conditions, Runner.settings, Runner.seeds = conditions, settings, seeds
        grey = (conditions["image"] + 1) * 127.5
        if "mask" in conditions:
            return np.round(grey + LEVEL * (1 - conditions["mask"])).astype(np.uint8)
        other, weight = (conditions["other_image"] + 1) * 127.5, conditions["other_weight"][:, None, None, None]
        shift = np.asarray(seeds)[:, None, None, None] % 4
        return np.round((1 - weight) * grey + weight * other + shift).astype(np.uint8)


@pytest.fixture
def run(trained_runs, monkeypatch):
    """A run of 8x8 digits, conditioned on labels, with the sampler above."""
    monkeypatch.setattr(editing, "SampleRunner", Runner)
    return load(trained_runs("pixel"))


def examples(images):
    labels = np.arange(COUNT, dtype=np.int32) % 3
    return Examples({"image": np.broadcast_to(images, (COUNT, 8, 8, 1)).astype(np.uint8), "label": labels})


@pytest.mark.parametrize("masks", ["half", "rectangle"])
def test_inpainting_measures_the_region_and_its_border(run, masks):
    flat = examples(np.arange(COUNT)[:, None, None, None] + 100)
    settings = Settings(masks=masks, batch_size=8, seed=4, overrides=(("resample_steps", 3),))
    result = editing.inpainting(settings, run, flat)
    assert result.values["border"]["mean"] == result.values["border_excess"]["mean"] == LEVEL
    assert result.values["border_real"]["mean"] == 0
    assert result.values["mse"]["mean"] == pytest.approx((LEVEL / 255) ** 2)
    assert result.values["fd_pixels"]["mean"] > 0 and "caption_accuracy" not in result.values
    assert int(Runner.settings["resample_steps"]) == 3 and set(Runner.seeds) == set(range(4, 4 + COUNT))
    known = Runner.conditions["mask"]
    assert known.shape == (COUNT, 8, 8, 1) and len({mask.tobytes() for mask in known}) > 2
    if masks == "half":
        assert (known.mean(axis=(1, 2, 3)) == 0.5).all()
    editing.inpainting(dataclasses.replace(settings, seed=5), run, flat)
    np.testing.assert_array_equal(Runner.conditions["mask"][:-1], known[1:])  # a mask depends on its image's seed alone
    assert result.shown
    shown = result.shown.images
    np.testing.assert_array_equal(shown[:4], np.where(known[:4] > 0, flat.images[:4], 128))
    np.testing.assert_array_equal(shown[4:], flat.images[:4] + LEVEL * (known[:4] == 0))


def test_interpolation_measures_ends_and_repeats(run):
    images, pairs = PAIRED, [(0, 3), (6, 9), (1, 4), (7, 10), (2, 5), (8, 11)]  # of one class
    result = editing.interpolation(Settings(strength=(0.25, 1.0), batch_size=8), run, examples(images))
    values = result.values
    assert [(row["strength"], row["t"]) for row in values["rows"]] == [(0.25, 5.0), (1.0, 20.0)]
    assert values["pairs"] == len(pairs) and values["reconstruction"]["mean"] == 0  # the ends have the first seed
    np.testing.assert_allclose(values["diversity"]["mean"], (3 * 1 + 2 * 4 + 9) / 6 / 255**2)
    expected = np.mean([np.mean((images[a] - images[b]) ** 2) for a, b in pairs]) / 255**2
    assert values["sources"]["mean"] == pytest.approx(expected)
    np.testing.assert_array_equal(Runner.conditions["label"][:12], [0] * 12)
    ends = [Runner.conditions[name][0] for name in ("image", "other_image")]
    np.testing.assert_allclose([(end + 1) * 127.5 for end in ends], images[[0, 3]], atol=1e-4)
    assert result.shown
    np.testing.assert_allclose(result.shown.images[1], (2 * images[0] + images[3]) / 3, atol=0.51)


def test_an_error_of_the_ends_is_measured_from_their_own_image(run, monkeypatch):
    """The ends are LEVEL away from the images; noise that is shared by seeds does not count as diversity."""
    call = Runner.__call__
    monkeypatch.setattr(Runner, "__call__", lambda self, v, seeds, *rest: call(self, v, 0 * seeds, *rest) + LEVEL)
    values = editing.interpolation(Settings(strength=(1.0,), batch_size=8), run, examples(PAIRED)).values
    assert values["reconstruction"]["mean"] == pytest.approx((LEVEL / 255) ** 2)
    assert values["diversity"]["mean"] == 0
