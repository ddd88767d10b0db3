"""Scenes of shapes: rendered images agree with their captions, and `check_caption` detects any change of a caption."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax.data import shapes
from diffjax.errors import UserError

indices = st.integers(0, 2**40)
splits = st.sampled_from(shapes.SPLITS)
kinds = {"size": tuple(shapes.RADII), "colour": tuple(shapes.COLOURS), "shape": shapes.SHAPES}


def changes(description):
    """Yields (attribute, description) for every description that differs in one attribute."""
    for k, group in enumerate(description.groups):
        for attribute, values in kinds.items():
            for value in values if getattr(group, attribute) else ():
                groups = list(description.groups)
                groups[k] = group._replace(**{attribute: value})
                if value != getattr(group, attribute) and len(set(groups)) == len(groups):
                    yield attribute, description._replace(groups=tuple(groups))
    if description.relation:
        for relation in shapes.RELATIONS:
            if relation != description.relation:
                yield "relation", description._replace(relation=relation)
    else:
        (group,) = description.groups
        for count in {1, 2, 3} - {group.count}:
            yield "count", shapes.Description((group._replace(count=count),))


@pytest.mark.parametrize("size", [16, 32, 64])
def test_every_scene_agrees_with_its_caption(size):
    for split, i in itertools.product(shapes.SPLITS, range(200)):
        scene = shapes.scene(split, i)
        assert all(shapes.check_caption(shapes.render(scene, size), shapes.caption(scene))), (split, i)


def test_any_change_of_the_caption_is_detected(monkeypatch):
    counts = collections.Counter()
    for i in range(300):
        scene = shapes.scene("train", i)
        image = shapes.render(scene, 32)
        found = shapes.detect_objects(image)
        monkeypatch.setattr(shapes, "detect_objects", lambda _, found=found: found)  # once per image: it is slow
        for attribute, description in changes(shapes.describe(scene)):
            check = shapes.check_caption(image, shapes.sentence(description))
            assert not all(check), (i, description)
            if len(description.groups) == 1:  # with two objects, another pairing may explain a change
                assert not getattr(check, attribute), (i, description)
            counts[attribute] += 1
        monkeypatch.undo()
    assert sum(counts.values()) > 4000 and min(counts.values()) > 150, counts


def test_images_contradict_contradictory_descriptions():
    counts = collections.Counter()
    for i in range(60):
        scene = shapes.scene("train", i)
        image, correct = shapes.render(scene, 32), shapes.describe(scene)
        for kind, wrong in shapes.contradictions(correct).items():
            assert correct not in wrong and len(set(wrong)) == len(wrong)
            for description in wrong:
                assert shapes.parse(shapes.sentence(description)) == description
                assert not all(shapes.check_caption(image, shapes.sentence(description))), (i, kind, description)
            counts[kind] += len(wrong)
    assert min(counts.values()) > 15, counts


def test_contradictions_by_kind():
    wrong = shapes.contradictions(shapes.parse("a small red circle above a small blue square"))
    assert wrong["order"] == [shapes.parse("a small blue square above a small red circle")]
    bound = {"a small blue circle above a small red square", "a small red square above a small blue circle"}
    assert {shapes.sentence(each) for each in wrong["binding"]} == bound
    assert [len(wrong[part]) for part in ("colour", "shape", "size")] == [14, 8, 2]
    alike = shapes.contradictions(shapes.parse("two red circles"))
    assert (alike["order"], alike["binding"], alike["size"]) == ([], [], [])


@pytest.mark.parametrize("size", [16, 32])
def test_detected_objects_equal_rendered_objects(size):
    for i in range(100):
        scene = shapes.scene("test", i)
        found = shapes.detect_objects(shapes.render(scene, size))
        assert len(found) == len(scene.objects)
        for a in scene.objects:
            b = min(found, key=lambda o: np.hypot(o.x - a.x, o.y - a.y))
            assert (a.shape, a.colour, a.size) == (b.shape, b.colour, b.size)
            np.testing.assert_allclose((a.x, a.y, a.radius), (b.x, b.y, b.radius), atol=0.25 / size)


def test_check_is_robust_to_noise():
    """Generated images are not exact."""
    rng = np.random.default_rng(0)
    for i in range(100):
        scene = shapes.scene("train", i)
        noisy = np.clip(shapes.render(scene, 32) + rng.normal(0, 6, (32, 32, 3)), 0, 255).astype(np.uint8)
        assert all(shapes.check_caption(noisy, shapes.caption(scene))), i


def test_empty_image_agrees_with_nothing():
    blank = np.full((32, 32, 3), 255, np.uint8)
    assert not any(shapes.check_caption(blank, "a small red circle above a large blue square"))
    assert shapes.check_caption(blank, "two red circles") == (False, False, False, True, True)


def test_missing_object_is_a_wrong_count_only():
    scene = next(s for s in (shapes.scene("train", i) for i in itertools.count()) if len(s.objects) == 3)
    two = shapes.render_objects(scene.objects[:2], 32)
    assert shapes.check_caption(two, shapes.caption(scene)) == (False, True, True, True, True)


def test_swapped_colours_are_detected():
    """The colour of each object matters, not only the set of colours."""
    objects = (shapes.Object("circle", "red", 0.5, 0.25, 0.12), shapes.Object("square", "blue", 0.5, 0.7, 0.17))
    image = shapes.render_objects(objects, 32)
    assert all(shapes.check_caption(image, "a small red circle above a large blue square"))
    assert all(shapes.check_caption(image, "a large blue square below a small red circle"))
    assert not shapes.check_caption(image, "a small blue circle above a large red square").colour
    assert not shapes.check_caption(image, "a small red circle below a large blue square").relation


def test_rendering_covers_the_shape():
    """The ink of a square is its area at any subpixel position, and its inside has its colour."""
    for x in (0.5, 0.51, 0.5237):
        image = shapes.render_objects((shapes.Object("square", "black", x, 0.5, 0.2),), 64)
        ink = (255.0 - image[..., 0]).sum() / (255 - shapes.COLOURS["black"][0]) / 64**2
        assert abs(ink - (2 * 0.88 * 0.2) ** 2) < 2e-3
        assert tuple(image[32, 32]) == shapes.COLOURS["black"] and tuple(image[0, 0]) == (255, 255, 255)


@given(splits, indices)
@settings(max_examples=100, deadline=None)
def test_scene_is_pure_and_well_laid_out(split, i):
    scene = shapes.scene(split, i)
    assert scene == shapes.scene(split, i)
    assert shapes.describe(scene) == shapes.sample_description(split, i)
    assert 1 <= len(scene.objects) <= 3
    for item in scene.objects:
        assert min(item.x, item.y) - item.radius >= 0 and max(item.x, item.y) + item.radius <= 1
    for a, b in itertools.combinations(scene.objects, 2):
        assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius + 1 / 16  # a pixel between, at 16 pixels
    if scene.relation:
        a, b = scene.objects
        right, down = a.x - b.x, a.y - b.y
        along = {"left of": -right, "right of": right, "above": -down, "below": down}[scene.relation]
        across = abs(down) if "of" in scene.relation else abs(right)
        assert along > 1.5 * across


@given(splits, indices)
@settings(max_examples=100, deadline=None)
def test_caption_and_parse_are_inverse(split, i):
    scene = shapes.scene(split, i)
    assert shapes.parse(shapes.caption(scene)) == shapes.describe(scene)


def test_parse_of_captions():
    first, second = shapes.Group(1, "small", "red", "circle"), shapes.Group(1, "large", "blue", "square")
    assert shapes.parse("a small red circle above a large blue square") == ((first, second), "above")
    assert shapes.parse("three green triangles") == ((shapes.Group(3, None, "green", "triangle"),), None)
    assert shapes.parse("two black crosses") == ((shapes.Group(2, None, "black", "cross"),), None)
    assert shapes.parse("a red circle") == ((shapes.Group(1, None, "red", "circle"),), None)


@pytest.mark.parametrize(
    "caption",
    ["", "a red dog", "two red circle", "a red circles", "two red circles above a blue square", "a red circle "],
)
def test_other_captions_are_reported(caption):
    with pytest.raises(UserError, match="cannot read the caption"):
        shapes.parse(caption)


def test_held_out_captions():
    """A tenth of all captions does not occur in train, in either direction of a relation."""
    train = {shapes.caption(shapes.scene("train", i)) for i in range(4000)}
    test = [shapes.caption(shapes.scene("test", i)) for i in range(1000)]
    assert not any(shapes.is_held_out(shapes.parse(caption)) for caption in train)
    assert all(shapes.is_held_out(shapes.parse(caption)) for caption in test)
    assert not train & set(test)
    groups = [shapes.Group(1, *words) for words in itertools.product(*kinds.values())]
    pairs = list(itertools.permutations(groups, 2))
    above = [shapes.is_held_out(shapes.Description(pair, "above")) for pair in pairs]
    assert above == [shapes.is_held_out(shapes.Description(pair[::-1], "below")) for pair in pairs]
    assert 0.08 < np.mean(above) < 0.12
    alone = [shapes.is_held_out(shapes.Description((group,))) for group in groups]
    assert 0.02 < np.mean(alone) < 0.2


def test_train_and_test_share_no_image():
    images = [{shapes.render(shapes.scene(split, i), 16).tobytes() for i in range(800)} for split in shapes.SPLITS]
    assert not images[0] & images[1]


def test_attributes_are_uniform():
    """All colours, shapes and relations are about equally frequent."""
    scenes = [shapes.scene("train", i) for i in range(3000)]
    for attribute, values in (("colour", kinds["colour"]), ("shape", kinds["shape"])):
        counts = collections.Counter(getattr(s.objects[0], attribute) for s in scenes)
        assert set(counts) == set(values)
        assert max(counts.values()) < 1.5 * min(counts.values())
    relations = collections.Counter(s.relation for s in scenes if s.relation)
    assert set(relations) == set(shapes.RELATIONS) and max(relations.values()) < 1.3 * min(relations.values())
    assert set(collections.Counter(len(s.objects) for s in scenes)) == {1, 2, 3}


def test_unknown_split():
    with pytest.raises(UserError, match="unknown split"):
        shapes.scene("validation", 0)
