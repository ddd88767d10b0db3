"""Unlimited, deterministic data set of captioned scenes of coloured shapes, rendered at any size.

A scene is one object ("a small red circle"), several equal ones ("three green triangles", of any sizes) or two in a
relation ("a small red circle above a large blue square"). Scene i is a pure function of (split, i). A tenth of all
captions, chosen by a hash, is held out: "test" has these captions only, and "train" all others. `check_caption` detects
the objects in an image, so that agreement of generated images with their captions can be measured.
"""

import dataclasses
import itertools
import re
import zlib
from typing import NamedTuple

import numpy as np

from diffjax.data.shapes_rendering import COLOURS, RADII, SHAPES, Object, detect_objects, render_objects
from diffjax.errors import UserError, unknown

SPLITS = ("train", "test")
COUNTS = {"a": 1, "two": 2, "three": 3}
# Axis (x, y) and sign of the offset from the second object to the first. Opposite relations are equivalent.
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
_NAMES = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(RADII)}  # values of a group's attributes
_OPPOSITES = {"right of": "left of", "below": "above"}
_BORDER, _GAP = 0.03, 0.08  # minimum distance to the image's edge, and between two boxes: a pixel at 16 x 16


class Group(NamedTuple):
    """Equal objects, as described in a caption."""

    count: int  # number of objects, 1 to 3  # pyright: ignore[reportIncompatibleMethodOverride]
    size: str | None  # None: any
    colour: str
    shape: str


class Description(NamedTuple):
    """Meaning of a caption: one group, or two of one object each with the relation of the first to the second."""

    groups: tuple[Group, ...]
    relation: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects with positions: two with a relation, or one to three of equal colour and shape."""

    objects: tuple[Object, ...]
    relation: str | None = None


class CaptionCheck(NamedTuple):
    """Agreement of an image with the parts of a caption; True for parts that the caption does not mention."""

    count: bool  # pyright: ignore[reportIncompatibleMethodOverride]
    colour: bool
    shape: bool
    size: bool
    relation: bool


# --- captions


def describe(scene: Scene) -> Description:
    """Returns the description of a scene."""
    if scene.relation:
        return Description(tuple(Group(1, o.size, o.colour, o.shape) for o in scene.objects), scene.relation)
    first, count = scene.objects[0], len(scene.objects)
    return Description((Group(count, first.size if count == 1 else None, first.colour, first.shape),))


def sentence(description: Description) -> str:
    """Returns the caption of a description, the inverse of `parse`."""
    article = {count: word for word, count in COUNTS.items()}

    def phrase(group: Group) -> str:
        plural = "" if group.count == 1 else "es" if group.shape.endswith("s") else "s"
        words = (article[group.count], group.size, group.colour, group.shape + plural)
        return " ".join(word for word in words if word)

    return f" {description.relation} ".join(phrase(group) for group in description.groups)


def caption(scene: Scene) -> str:
    """Returns the caption of a scene."""
    return sentence(describe(scene))


_PHRASE = rf"({'|'.join(COUNTS)}) (?:({'|'.join(RADII)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:es|s)?"
_CAPTION = re.compile(rf"{_PHRASE}(?: ({'|'.join(RELATIONS)}) {_PHRASE})?")


def parse(caption: str) -> Description:
    """Returns the description of a caption; sizes may be omitted.

    Raises:
      UserError: the caption is not one of this data set's.
    """
    if match := _CAPTION.fullmatch(caption):
        phrases, relation = (match.groups()[:4], match.groups()[5:]), match[5]
        groups = tuple(Group(COUNTS[words[0]], *words[1:]) for words in phrases if words[0])
        description = Description(groups, relation)
        valid = relation is None or all(group.count == 1 for group in groups)
        if valid and sentence(description) == caption:  # else a plural is wrong
            return description
    raise UserError(
        f"cannot read the caption {caption!r}: write it like 'a small red circle above a large blue square' "
        f"or 'three green triangles', with colours {', '.join(COLOURS)} and shapes {', '.join(SHAPES)}"
    )


def contradictions(description: Description) -> dict[str, list[Description]]:
    """Returns descriptions that contradict the given one, by their difference.

    The differences are "colour", "shape" and "size" of one group; "order", the two objects of a relation exchanged; and
    "binding", one attribute of the two objects exchanged.
    """
    groups = description.groups
    wrong = {kind: [] for kind in (*_NAMES, "order", "binding")}
    for part, names in _NAMES.items():
        for k, group in enumerate(groups):
            for name in set(names) - {getattr(group, part)} if getattr(group, part) else ():
                wrong[part].append((*groups[:k], group._replace(**{part: name}), *groups[k + 1 :]))
    if description.relation:
        swapped = groups[::-1]
        wrong["order"].append(swapped)
        for part in _NAMES:
            pairs = zip(groups, swapped, strict=True)
            exchanged = tuple(group._replace(**{part: getattr(other, part)}) for group, other in pairs)
            if exchanged not in (groups, swapped):
                wrong["binding"].append(exchanged)
    return {
        kind: [description._replace(groups=each) for each in alternatives if len(set(each)) == len(each)]
        for kind, alternatives in wrong.items()
    }


def is_held_out(description: Description) -> bool:
    """Returns whether a caption occurs in "test" only: one of ten; "A above B" and "B below A" agree."""
    if description.relation in _OPPOSITES:
        description = Description(description.groups[::-1], _OPPOSITES[description.relation])
    return zlib.crc32(sentence(description).encode()) % 10 == 0


# --- scenes


def scene(split: str, i: int) -> Scene:
    """Returns a scene whose objects do not overlap and whose relation clearly holds along one axis.

    Args:
      split: "train" or "test".
      i: index of the scene, from 0.

    Raises:
      UserError: an unknown split.
    """
    rng = _generator(split, i)
    return _arrange(rng, _sample_description(rng, held_out=split == "test"))


def sample_description(split: str, i: int) -> Description:
    """Returns `describe(scene(split, i))` without arranging the objects."""
    return _sample_description(_generator(split, i), held_out=split == "test")


def render(scene: Scene, size: int) -> np.ndarray:
    """Returns the image of a scene on white: uint8 [size, size, 3]."""
    return render_objects(scene.objects, size)


def _generator(split: str, i: int) -> np.random.Generator:
    if split not in SPLITS:
        raise unknown("split of shapes", split, SPLITS)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([SPLITS.index(split), i])))


def _sample_description(rng: np.random.Generator, *, held_out: bool) -> Description:
    while is_held_out(description := _sample_any_description(rng)) != held_out:
        pass
    return description


def _sample_any_description(rng: np.random.Generator) -> Description:
    """Samples one object, equal objects or a relation with probabilities 1/4, 1/4, 1/2, and uniform attributes."""

    def group(count: int) -> Group:
        size, colour, shape = (names[rng.integers(len(names))] for names in (tuple(RADII), tuple(COLOURS), SHAPES))
        return Group(count, size if count == 1 else None, colour, shape)

    form = rng.integers(4)
    if form < 2:
        return Description((group(1 if form == 0 else int(rng.integers(2, 4))),))
    first = second = group(1)
    while second == first:
        second = group(1)
    return Description((first, second), tuple(RELATIONS)[rng.integers(4)])


def _arrange(rng: np.random.Generator, description: Description) -> Scene:
    """Samples positions and sizes of the objects."""
    groups = [group for group in description.groups for _ in range(group.count)]
    sizes = [group.size or tuple(RADII)[rng.integers(2)] for group in groups]
    radii = np.array([rng.uniform(*RADII[size]) for size in sizes])
    low = _BORDER + radii[:, None]
    pairs = list(itertools.combinations(range(len(groups)), 2))
    while True:  # many layouts at once; the first valid one is used
        centres = rng.uniform(low, 1 - low, size=(128, len(groups), 2))
        good = np.ones(len(centres), bool)
        for a, b in pairs:
            offset = centres[:, a] - centres[:, b]
            good &= abs(offset).max(-1) > radii[a] + radii[b] + _GAP
        if description.relation:
            axis, sign = RELATIONS[description.relation]
            offset = centres[:, 0] - centres[:, 1]
            good &= sign * offset[:, axis] > 1.5 * abs(offset[:, 1 - axis])
        if good.any():
            break
    places = centres[np.argmax(good)].tolist()
    objects = [Object(g.shape, g.colour, x, y, float(r)) for g, (x, y), r in zip(groups, places, radii, strict=True)]
    return Scene(tuple(objects), description.relation)


# --- agreement of an image with a caption


def check_caption(image: np.ndarray, caption: str) -> CaptionCheck:
    """Returns the agreement of an image with each part of a caption.

    Objects are paired with the phrases of the caption so that the most of colour, shape and size agree, each for all
    objects; among equal pairings, so that the relation holds if possible. So all parts agree if and only if they do for
    some pairing. If the objects are not identified (`check_and_identify`), the relation is an upper bound.

    Args:
      image: uint8 [S, S, 3], S at least 16, objects on white.
      caption: caption of this data set.

    Raises:
      UserError: the caption is not one of this data set's.
    """
    return check_and_identify(image, caption)[0]


def check_and_identify(image: np.ndarray, caption: str) -> tuple[CaptionCheck, bool]:
    """Returns the result of `check_caption`, and whether the objects of a relation are identified.

    The objects of a relation are identified if the image has two objects, and they have the colours, shapes and sizes
    of the caption under exactly one of the two pairings, irrespective of the relation. So an image with a wrong object
    has no identified objects, nor has one of a caption with two equal objects. For identified objects at random
    positions, the relation holds with probability 1 / len(RELATIONS).

    Args:
      image: uint8 [S, S, 3], S at least 16, objects on white.
      caption: caption of this data set.

    Raises:
      UserError: the caption is not one of this data set's.
    """
    groups, relation = parse(caption)
    described = [group for group in groups for _ in range(group.count)]
    detected = detect_objects(image)
    if len(detected) != len(described):  # no pairing: compare the sets of attributes

        def agrees(part: str) -> bool:
            return {getattr(o, part) for o in detected} == {getattr(g, part) for g in groups}

        size = None in {g.size for g in groups} or agrees("size")
        return CaptionCheck(False, agrees("colour"), agrees("shape"), size, relation is None), False

    def compare(objects: tuple[Object, ...]) -> CaptionCheck:
        pairs = list(zip(objects, described, strict=True))
        return CaptionCheck(
            count=True,
            colour=all(o.colour == g.colour for o, g in pairs),
            shape=all(o.shape == g.shape for o, g in pairs),
            size=all(g.size in (None, o.size) for o, g in pairs),
            relation=relation is None or _relation(*objects) == relation,
        )

    def attributes(pairing: CaptionCheck) -> int:
        return pairing.colour + pairing.shape + pairing.size

    pairings = [compare(order) for order in itertools.permutations(detected)]
    best = max(pairings, key=lambda pairing: (attributes(pairing), pairing.relation))
    return best, relation is not None and [attributes(each) for each in pairings].count(3) == 1


def _relation(first: Object, second: Object) -> str:
    """Returns the relation of the first object to the second along the axis of their larger distance."""
    offset = (first.x - second.x, first.y - second.y)
    axis = int(abs(offset[1]) > abs(offset[0]))
    return next(name for name, (a, sign) in RELATIONS.items() if a == axis and (sign > 0) == (offset[axis] > 0))
