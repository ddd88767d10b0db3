"""An endless, deterministic set of captioned scenes of coloured shapes, drawn on the fly at any size.

A scene is one object ("a small red circle"), several alike ("three green triangles", of any sizes) or two in a
relation ("a small red circle above a large blue square"). Scene i is a pure function of (split, i). A tenth of what
can be said, chosen by a hash, is held out: it is never said in "train", and "test" says nothing else.
`check` reads a picture back, so whether a generated picture shows what its caption says is measured and not judged.
"""

import dataclasses
import itertools
import re
import zlib
from typing import NamedTuple

import numpy as np

from diffjax.data.shapes_picture import COLOURS, RADII, SHAPES, Object, find, paint
from diffjax.errors import UserError, unknown

SPLITS = ("train", "test")
COUNTS = {"a": 1, "two": 2, "three": 3}
# From the second object to the first: the axis (x, y) and the sign. Opposites say the same thing the other way round.
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
_NAMES = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(RADII)}  # what a group is said to be
_OPPOSITES = {"right of": "left of", "below": "above"}
_BORDER, _GAP = 0.03, 0.08  # least distance to the picture's edge and between two boxes: a pixel at 16 x 16


class Group(NamedTuple):
    """Objects alike, as a caption names them."""

    count: int
    size: str | None  # None: any
    colour: str
    shape: str


class Description(NamedTuple):
    """What a caption says: one group, or two of one object each and the relation of the first to the second."""

    groups: tuple[Group, ...]
    relation: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """Where everything is. With a relation there are two objects; without, all are of one colour and shape."""

    objects: tuple[Object, ...]
    relation: str | None = None


class Check(NamedTuple):
    """Which parts of a caption a picture agrees with; a part that the caption does not mention is True."""

    count: bool
    colour: bool
    shape: bool
    size: bool
    relation: bool


# --- captions


def describe(scene: Scene) -> Description:
    if scene.relation:
        return Description(tuple(Group(1, o.size, o.colour, o.shape) for o in scene.objects), scene.relation)
    first, count = scene.objects[0], len(scene.objects)
    return Description((Group(count, first.size if count == 1 else None, first.colour, first.shape),))


def sentence(description: Description) -> str:
    """The caption of a description; `parse` is its inverse."""
    article = {count: word for word, count in COUNTS.items()}

    def phrase(group: Group) -> str:
        plural = "" if group.count == 1 else "es" if group.shape.endswith("s") else "s"
        words = (article[group.count], group.size, group.colour, group.shape + plural)
        return " ".join(word for word in words if word)

    return f" {description.relation} ".join(phrase(group) for group in description.groups)


def caption(scene: Scene) -> str:
    return sentence(describe(scene))


_PHRASE = rf"({'|'.join(COUNTS)}) (?:({'|'.join(RADII)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:es|s)?"
_CAPTION = re.compile(rf"{_PHRASE}(?: ({'|'.join(RELATIONS)}) {_PHRASE})?")


def parse(caption: str) -> Description:
    """What a caption says; a size may be left out.

    Raises:
      UserError: the caption is not one of this data set's.
    """
    if found := _CAPTION.fullmatch(caption):
        phrases, relation = (found.groups()[:4], found.groups()[5:]), found[5]
        groups = tuple(Group(COUNTS[words[0]], *words[1:]) for words in phrases if words[0])
        description = Description(groups, relation)
        alone = relation is None or all(group.count == 1 for group in groups)
        if alone and sentence(description) == caption:  # else a plural is wrong
            return description
    raise UserError(
        f"cannot read the caption {caption!r}: write it like 'a small red circle above a large blue square' "
        f"or 'three green triangles', with colours {', '.join(COLOURS)} and shapes {', '.join(SHAPES)}"
    )


def contradictions(description: Description) -> dict[str, list[Description]]:
    """Descriptions that no picture of the given one shows, by what of it they have wrong.

    "colour", "shape" and "size" of one group; "order", where the two of a relation have changed places; "binding",
    where they have exchanged one of colour, shape and size, and so are not the same two.
    """
    groups = description.groups
    wrong = {kind: [] for kind in (*_NAMES, "order", "binding")}
    for part, names in _NAMES.items():
        for k, group in enumerate(groups):
            for name in set(names) - {getattr(group, part)} if getattr(group, part) else ():
                wrong[part].append((*groups[:k], group._replace(**{part: name}), *groups[k + 1 :]))
    if description.relation:
        turned = groups[::-1]
        wrong["order"].append(turned)
        for part in _NAMES:
            pairs = zip(groups, turned, strict=True)
            exchanged = tuple(group._replace(**{part: getattr(other, part)}) for group, other in pairs)
            if exchanged not in (groups, turned):
                wrong["binding"].append(exchanged)
    return {
        kind: [description._replace(groups=each) for each in found if len(set(each)) == len(each)]
        for kind, found in wrong.items()
    }


def held_out(description: Description) -> bool:
    """Whether only "test" says this: one in ten, and "A above B" along with "B below A"."""
    if description.relation in _OPPOSITES:
        description = Description(description.groups[::-1], _OPPOSITES[description.relation])
    return zlib.crc32(sentence(description).encode()) % 10 == 0


# --- scenes


def scene(split: str, i: int) -> Scene:
    """Scene i >= 0 of "train" or "test". Nothing overlaps, and a relation holds along one axis clearly.

    Raises:
      UserError: an unknown split.
    """
    if split not in SPLITS:
        raise unknown("split of shapes", split, SPLITS)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([SPLITS.index(split), i])))
    wanted = split == "test"
    while held_out(description := _describe_any(rng)) != wanted:
        pass
    return _arrange(rng, description)


def draw(scene: Scene, size: int) -> np.ndarray:
    """The picture of a scene, on white: uint8 [size, size, 3]."""
    return paint(scene.objects, size)


def _describe_any(rng: np.random.Generator) -> Description:
    """One object, several alike and a relation with probabilities 1/4, 1/4 and 1/2, all else uniform."""

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
    groups = [group for group in description.groups for _ in range(group.count)]
    sizes = [group.size or tuple(RADII)[rng.integers(2)] for group in groups]
    radii = np.array([rng.uniform(*RADII[size]) for size in sizes])
    low = _BORDER + radii[:, None]
    pairs = list(itertools.combinations(range(len(groups)), 2))
    while True:  # many layouts at once, of which the first good one is taken
        centres = rng.uniform(low, 1 - low, size=(128, len(groups), 2))
        good = np.ones(len(centres), bool)
        for a, b in pairs:
            offset = centres[:, a] - centres[:, b]
            good &= abs(offset).max(-1) > radii[a] + radii[b] + _GAP
        if description.relation:
            axis, sign = RELATIONS[description.relation]
            good &= sign * offset[:, axis] > 1.5 * abs(offset[:, 1 - axis])
        if good.any():
            break
    places = centres[np.argmax(good)].tolist()
    objects = [Object(g.shape, g.colour, x, y, float(r)) for g, (x, y), r in zip(groups, places, radii, strict=True)]
    return Scene(tuple(objects), description.relation)


# --- whether a picture shows what its caption says


def check(image: np.ndarray, caption: str) -> Check:
    """Returns whether a picture, uint8 [S, S, 3] with S >= 16, shows what a caption says, part by part.

    Objects are paired with the caption's phrases so that most of colour, shape and size hold, each for all objects;
    where several pairings have as many, so that the relation holds if it can. All parts hold if and only if there is a
    pairing for which they do. Of a picture whose objects are not identified (`read`) the relation is an upper bound.

    Raises:
      UserError: the caption is not one of this data set's.
    """
    return read(image, caption)[0]


def read(image: np.ndarray, caption: str) -> tuple[Check, bool]:
    """Returns what `check` does, and whether the picture tells which object is which of the caption's two.

    The two objects of a relation are identified where the picture has two objects, and one of the two pairings has
    more of colour, shape and size right than the other. The relation takes no part in that. So objects are identified
    by a colour alone where their shapes are wrong. They are not identified where the caption's two are alike, where the
    picture's two are, or where colour speaks for one pairing and shape for the other. With objects that are identified
    and are placed without regard to the caption, one relation of four holds: by chance 1 / len(RELATIONS).

    Raises:
      UserError: the caption is not one of this data set's.
    """
    groups, relation = parse(caption)
    said = [group for group in groups for _ in range(group.count)]
    found = find(image)
    if len(found) != len(said):  # nothing to pair up: compare what occurs at all
        same = [{getattr(o, part) for o in found} == {getattr(g, part) for g in groups} for part in ("colour", "shape")]
        sizes = {g.size for g in groups}
        return Check(False, *same, None in sizes or {o.size for o in found} == sizes, relation is None), False

    def compare(objects: tuple[Object, ...]) -> Check:
        pairs = list(zip(objects, said, strict=True))
        return Check(
            count=True,
            colour=all(o.colour == g.colour for o, g in pairs),
            shape=all(o.shape == g.shape for o, g in pairs),
            size=all(g.size in (None, o.size) for o, g in pairs),
            relation=relation is None or _relation(*objects) == relation,
        )

    def attributes(pairing: Check) -> int:
        return pairing.colour + pairing.shape + pairing.size

    pairings = [compare(order) for order in itertools.permutations(found)]
    best = max(pairings, key=lambda pairing: (attributes(pairing), pairing.relation))
    identified = relation is not None and [attributes(each) for each in pairings].count(attributes(best)) == 1
    return best, identified


def _relation(first: Object, second: Object) -> str:
    """The relation of the first to the second, along the axis on which they are further apart."""
    offset = (first.x - second.x, first.y - second.y)
    axis = int(abs(offset[1]) > abs(offset[0]))
    return next(name for name, (a, sign) in RELATIONS.items() if a == axis and (sign > 0) == (offset[axis] > 0))
