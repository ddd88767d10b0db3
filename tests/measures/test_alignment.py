"""Pictures against their captions: scenes read back, and a judge that knows."""

import types
import zlib

import numpy as np
import pytest

from diffjax.data import shapes
from diffjax.errors import UserError
from diffjax.measures import alignment
from diffjax.measures.settings import Settings
from diffjax.workdir import Workdir
from tests import tiny


def drawn(captions, seed=0):
    """A true picture of each."""
    rng = np.random.default_rng(seed)
    scenes = [shapes._arrange(rng, shapes.parse(caption)) for caption in captions]
    return np.stack([shapes.draw(scene, 32) for scene in scenes])


CAPTIONS = [
    "a small red circle",
    "three green triangles",
    "a small red circle above a large blue square",
    "two blue squares",
]


def test_true_pictures_show_all_that_is_said():
    found = alignment.by_reading(drawn(CAPTIONS), CAPTIONS)
    assert set(found) == set(alignment.PARTS)
    assert all(value == 1.0 for value, _ in found.values())


def test_each_part_is_judged_by_itself():
    wrong = {
        "colour": "a small green circle",
        "shape": "a small red square",
        "size": "a large red circle",
        "count": "two red circles",
    }
    for part, said in wrong.items():
        found = alignment.by_reading(drawn(["a small red circle"]), [said])
        assert found[f"caption_{part}"].value == 0 and found["captions"].value == 0, part
        for other in wrong.keys() - {part, "count", "size"}:
            assert found[f"caption_{other}"].value == 1, (part, other)
    turned = "a small red circle below a large blue square"
    found = alignment.by_reading(drawn([CAPTIONS[2]]), [turned])
    assert found["caption_relation"].value == 0 and found["caption_colour"].value == 1


def test_what_a_caption_does_not_say_is_not_counted():
    pictures = drawn(CAPTIONS)
    pictures[2] = drawn(["a small red circle below a large blue square"])[0]
    found = alignment.by_reading(pictures, CAPTIONS)
    assert found["caption_relation"].value == 0  # of one that speaks of a relation
    assert found["captions"].value == 0.75
    assert "caption_relation" not in alignment.by_reading(pictures[:2], CAPTIONS[:2])


class Knowing:
    """A judge for whom caption i of a list and picture i are the same vector."""

    def __init__(self, captions):
        self._places = {caption: i for i, caption in enumerate(captions)}
        self._size = len(self._places)

    def texts(self, captions):
        return np.eye(self._size, dtype=np.float32)[[self._places[caption] for caption in captions]]

    def pictures(self, images):
        return np.eye(self._size, dtype=np.float32)[images[:, 0, 0, 0].astype(int)]


def marked(places):
    return np.tile(np.array(places, np.uint8)[:, None, None, None], (1, 4, 4, 3))


def test_a_clip_tells_right_from_wrong():
    judge = Knowing(CAPTIONS)
    right = alignment.by_clip(judge, marked([0, 1, 2, 3]), CAPTIONS, seed=0)
    assert (right["clip_score"].value, right["r_precision"].value) == (100, 1)
    half = alignment.by_clip(judge, marked([0, 1, 3, 2]), CAPTIONS, seed=0)
    assert (half["clip_score"].value, half["r_precision"].value) == (50, 0.5)


class Unordered:
    """A judge for whom captions of the same objects are one vector, and picture i is caption i's."""

    def __init__(self, captions):
        self._captions = captions

    def texts(self, captions):
        said = [sorted(map(str, shapes.parse(caption).groups)) for caption in captions]
        found = np.stack([np.random.default_rng(zlib.crc32(str(each).encode())).normal(size=256) for each in said])
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def pictures(self, images):
        return self.texts([self._captions[i] for i in images[:, 0, 0, 0]])


def test_composition_finds_out_who_ignores_order(monkeypatch):
    captions = [*CAPTIONS, "a large red circle left of a small blue cross"]
    trained = types.SimpleNamespace(config=tiny.config("clip_shapes"), workdir=Workdir("."), spec=None, step=0)
    monkeypatch.setattr(alignment, "Judge", lambda *given: Unordered(captions))
    examples = types.SimpleNamespace(images=marked(range(5)), captions=captions)
    found = alignment.composition(Settings(), trained, examples)
    assert {kind: figure["mean"] for kind, figure in found.items()} == {
        **dict.fromkeys(("colour", "shape", "size", "binding"), 1.0),
        "order": 0.0,
    }
    counts = {kind: figure["pictures"] for kind, figure in found.items()}
    assert counts == {"colour": 5, "shape": 5, "size": 3, "order": 2, "binding": 2}
    assert found["order"]["chance"] == 0.5 and found["binding"]["chance"] == 0.25
    one = types.SimpleNamespace(images=marked([0, 1, 2]), captions=captions[:3])
    assert alignment.composition(Settings(), trained, one).keys() == {"colour", "shape", "size"}


def test_only_pictures_of_shapes_are_read():
    trained = types.SimpleNamespace(config=tiny.config("dalle_shapes", data__name="emoji"))
    with pytest.raises(UserError, match="this run is of emoji"):
        alignment.check_shapes("captions", trained)
