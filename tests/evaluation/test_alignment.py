"""Alignment of images with their captions, by detected scenes and by a CLIP with known embeddings."""

import itertools
import types
import zlib

import numpy as np
import pytest

from diffjax.data import shapes
from diffjax.errors import UserError
from diffjax.evaluation import alignment
from diffjax.evaluation.settings import Settings
from diffjax.metrics.resampling import proportion_with_error
from diffjax.runs.workdir import Workdir
from tests import tiny


def drawn(captions, seed=0):
    """Returns a correct image of each caption."""
    rng = np.random.default_rng(seed)
    scenes = [shapes._arrange(rng, shapes.parse(caption)) for caption in captions]
    return np.stack([shapes.render(scene, 32) for scene in scenes])


CAPTIONS = [
    "a small red circle",
    "three green triangles",
    "a small red circle above a large blue square",
    "two blue squares",
]


def test_correct_images_have_perfect_caption_accuracy():
    found = alignment.caption_accuracy(drawn(CAPTIONS), CAPTIONS)
    assert set(found) == set(alignment.CAPTION_VALUES)
    assert all(value == 1.0 and error > 0 for value, error in found.values())


def test_each_attribute_is_scored_separately():
    wrong = {
        "colour": "a small green circle",
        "shape": "a small red square",
        "size": "a large red circle",
        "count": "two red circles",
    }
    for part, described in wrong.items():
        found = alignment.caption_accuracy(drawn(["a small red circle"]), [described])
        assert found[f"caption_{part}"].value == 0 and found["caption_accuracy"].value == 0, part
        for other in wrong.keys() - {part, "count", "size"}:
            assert found[f"caption_{other}"].value == 1, (part, other)
    turned = "a small red circle below a large blue square"
    found = alignment.caption_accuracy(drawn([CAPTIONS[2]]), [turned])
    assert found["caption_relation"].value == 0 and found["caption_colour"].value == 1


def test_attributes_missing_from_a_caption_are_not_counted():
    pictures = drawn(CAPTIONS)
    pictures[2] = drawn(["a small red circle below a large blue square"])[0]
    found = alignment.caption_accuracy(pictures, CAPTIONS)
    assert found["caption_relation"].value == 0  # one caption has a relation
    assert found["caption_accuracy"].value == 0.75
    assert "caption_relation" not in alignment.caption_accuracy(pictures[:2], CAPTIONS[:2])


def relations(count, seed=0):
    """Captions with a relation of two objects."""
    descriptions = (shapes.describe(shapes.scene("train", 10_000 * seed + i)) for i in itertools.count())
    return [shapes.sentence(each) for each in itertools.islice((d for d in descriptions if d.relation), count)]


def mirrored(caption):
    first, second = shapes.parse(caption).groups
    relation = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    return shapes.sentence(shapes.Description((first, second), relation[shapes.parse(caption).relation]))


def test_relation_accuracy_of_correct_and_mirrored_images():
    captions = relations(60)
    images = drawn(captions)
    right = alignment.caption_accuracy(images, captions)
    assert right["caption_relation"].value == right["caption_relation_share"].value == 1
    wrong = alignment.caption_accuracy(images, [mirrored(caption) for caption in captions])
    assert wrong["caption_relation"].value == 0 and wrong["caption_relation_share"].value == 1


def test_relation_of_identified_objects_at_random_positions_is_chance():
    """Positions are independent of the caption; images of other captions have other objects."""
    rng, captions = np.random.default_rng(1), relations(100)
    shown = [shapes.parse(each)._replace(relation=tuple(shapes.RELATIONS)[rng.integers(4)]) for each in captions]
    found = alignment.caption_accuracy(drawn(map(shapes.sentence, shown)), captions)
    assert found["caption_relation_share"].value == 1
    value, error = found["caption_relation"]
    assert error == pytest.approx(np.sqrt(0.25 * 0.75 / 100), rel=0.25)
    assert abs(value - alignment.RELATION_CHANCE) < 3 * np.sqrt(0.25 * 0.75 / 100)
    others = alignment.caption_accuracy(drawn(captions[1:] + captions[:1]), captions)
    assert others["caption_relation_share"].value == others["caption_accuracy"].value == 0


RED, BLUE = "a small red circle", "a large blue square"


@pytest.mark.parametrize(
    ("shown", "described"),
    [
        (f"{RED} above {RED}", f"{RED} above {BLUE}"),  # both objects of the image are equal
        (f"{RED} above {BLUE}", f"{RED} above {RED}"),  # both objects of the caption are equal
        (f"{RED} above {RED}", f"{RED} above {RED}"),
        ("a small green cross above a small green cross", f"{RED} above {BLUE}"),
        ("a small red square above a small blue circle", "a small red circle above a small blue square"),  # binding
        (f"{RED} above a large blue cross", f"{RED} above {BLUE}"),  # one has a wrong shape
        (f"{RED} above a large green square", f"{RED} above {BLUE}"),  # one has a wrong colour
        (f"{RED} above a small blue square", f"{RED} above {BLUE}"),  # one has a wrong size
        ("a small red cross above a small blue cross", f"{RED} above {BLUE}"),  # only the colours are right
        (RED, f"{RED} above {BLUE}"),  # one is missing
        ("three red circles", f"{RED} above {BLUE}"),
    ],
)
def test_unidentified_objects_are_excluded_from_the_relation(shown, described):
    found = alignment.caption_accuracy(drawn([shown]), [described])
    assert found["caption_relation"] == (None, None) and found["caption_relation_share"].value == 0


@pytest.mark.parametrize(
    ("shown", "described", "relation"),
    [
        (f"{RED} above {BLUE}", f"{BLUE} below {RED}", 1),
        (f"{RED} above {BLUE}", f"{BLUE} above {RED}", 0),  # right objects, wrong relation
        (f"{RED} above {BLUE}", f"{RED} left of {BLUE}", 0),
        ("a small red circle above a large red circle", "a large red circle below a small red circle", 1),
        ("a large blue square left of a small red circle", "a red circle right of a blue square", 1),  # without sizes
    ],
)
def test_objects_are_identified_if_all_attributes_agree(shown, described, relation):
    found = alignment.caption_accuracy(drawn([shown]), [described])
    assert found["caption_relation"].value == relation and found["caption_relation_share"].value == 1


def test_errors_are_over_captions():
    """Images of one caption are correlated: 40 images of two captions are as uncertain as two images."""
    captions = ["a small red circle"] * 20 + ["two blue squares"] * 20
    images = np.concatenate([drawn(captions[:1])[[0] * 20], drawn(["a small red circle"])[[0] * 20]])
    found = alignment.caption_accuracy(images, captions)
    assert found["caption_accuracy"].value == 0.5
    assert found["caption_accuracy"].standard_error == pytest.approx(
        proportion_with_error(np.array([True, False])).standard_error, rel=0.3
    )
    judge = Knowing(CAPTIONS)
    found = alignment.clip_metrics(judge, marked([0] * 20 + [2] * 20), [CAPTIONS[0]] * 20 + [CAPTIONS[1]] * 20, seed=0)
    assert found["clip_score"] == pytest.approx((50, 50))  # 100 and 0: deviation sqrt(2) 50, over sqrt(2)


def test_a_single_caption_has_no_r_precision():
    found = alignment.clip_metrics(Knowing(CAPTIONS), marked([0, 1]), [CAPTIONS[0]] * 2, seed=0)
    assert found["r_precision"] == (None, None)


class Knowing:
    """A CLIP for which caption i of a list and image i have the same embedding."""

    def __init__(self, captions):
        self._places = {caption: i for i, caption in enumerate(captions)}
        self._size = len(self._places)

    def embed_captions(self, captions):
        return np.eye(self._size, dtype=np.float32)[[self._places[caption] for caption in captions]]

    def embed_images(self, images):
        return np.eye(self._size, dtype=np.float32)[images[:, 0, 0, 0].astype(int)]


def marked(places):
    return np.tile(np.array(places, np.uint8)[:, None, None, None], (1, 4, 4, 3))


def test_clip_metrics_of_right_and_wrong_captions():
    judge = Knowing(CAPTIONS)
    right = alignment.clip_metrics(judge, marked([0, 1, 2, 3]), CAPTIONS, seed=0)
    assert (right["clip_score"].value, right["r_precision"].value) == (100, 1)
    half = alignment.clip_metrics(judge, marked([0, 1, 3, 2]), CAPTIONS, seed=0)
    assert (half["clip_score"].value, half["r_precision"].value) == (50, 0.5)


class Unordered:
    """A CLIP for which captions of the same objects have one embedding, which is that of image i for caption i."""

    def __init__(self, captions):
        self._captions = captions

    def embed_captions(self, captions):
        described = [sorted(map(str, shapes.parse(caption).groups)) for caption in captions]
        found = np.stack([np.random.default_rng(zlib.crc32(str(each).encode())).normal(size=256) for each in described])
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def embed_images(self, images):
        return self.embed_captions([self._captions[i] for i in images[:, 0, 0, 0]])


def test_composition_detects_models_that_ignore_word_order(monkeypatch):
    captions = [*CAPTIONS, "a large red circle left of a small blue cross"]
    trained = types.SimpleNamespace(config=tiny.config("clip_shapes"), workdir=Workdir("."), spec=None, step=0)
    monkeypatch.setattr(alignment, "Reranker", lambda *arguments: Unordered(captions))
    examples = types.SimpleNamespace(images=marked(range(5)), captions=captions)
    found = alignment.composition(Settings(), trained, examples).values
    assert {kind: figure["mean"] for kind, figure in found.items()} == {
        **dict.fromkeys(("colour", "shape", "size", "binding"), 1.0),
        "order": 0.0,
    }
    counts = {kind: figure["images"] for kind, figure in found.items()}
    assert counts == {"colour": 5, "shape": 5, "size": 3, "order": 2, "binding": 2}
    assert found["order"]["chance"] == 0.5 and found["binding"]["chance"] == 0.25
    one = types.SimpleNamespace(images=marked([0, 1, 2]), captions=captions[:3])
    assert alignment.composition(Settings(), trained, one).values.keys() == {"colour", "shape", "size"}


def test_caption_accuracy_requires_shapes():
    trained = types.SimpleNamespace(config=tiny.config("dalle_shapes", data__name="emoji"))
    with pytest.raises(UserError, match=r"requires data.name=shapes \(this run: emoji\)"):
        alignment.check_shapes("caption_accuracy", trained)
