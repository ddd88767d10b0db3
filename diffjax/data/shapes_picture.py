"""Coloured shapes on white: drawn at any size with anti-aliased edges, and found again in a picture.

Lengths are in units of the picture's width; x runs right, y runs down. Every shape fits the box [-1, 1]^2 around its
centre, scaled by its radius.
"""

from typing import NamedTuple

import numpy as np

_SQUARE, _ARM = 0.88, 0.34  # half-widths, so that a square looks no larger than a circle
_TRIANGLE = np.sqrt(3) / 2  # half-height of the equilateral triangle of width 2

# Signed distance to the outline at (u, v), negative inside; exact along the edges, which is what is anti-aliased.
_DISTANCES = {
    "circle": lambda u, v: np.hypot(u, v) - 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) - _SQUARE,
    "triangle": lambda u, v: np.maximum(v - _TRIANGLE, (np.sqrt(3) * abs(u) - v - _TRIANGLE) / 2),
    "diamond": lambda u, v: (abs(u) + abs(v) - 1) / np.sqrt(2),
    "cross": lambda u, v: np.minimum(np.maximum(abs(u) - 1, abs(v) - _ARM), np.maximum(abs(u) - _ARM, abs(v) - 1)),
}
SHAPES = tuple(_DISTANCES)
_AREAS = {  # of radius 1
    "circle": np.pi,
    "square": 4 * _SQUARE**2,
    "triangle": np.sqrt(3),
    "diamond": 2.0,
    "cross": 8 * _ARM - 4 * _ARM**2,
}
_CENTROIDS = {shape: _TRIANGLE / 3 if shape == "triangle" else 0.0 for shape in SHAPES}  # v of the centre of mass

# No two are mixtures with white of one another, so a colour is known from a half-covered pixel too.
COLOURS = {
    "red": (225, 35, 40),
    "orange": (250, 130, 10),
    "yellow": (250, 210, 0),
    "green": (35, 155, 60),
    "cyan": (0, 190, 215),
    "blue": (35, 75, 225),
    "purple": (145, 45, 185),
    "black": (35, 35, 35),
}
RADII = {"small": (0.11, 0.125), "large": (0.165, 0.185)}  # from, to


class Object(NamedTuple):
    """One thing in a picture."""

    shape: str
    colour: str
    x: float  # centre
    y: float
    radius: float

    @property
    def size(self) -> str:
        return "small" if self.radius < (RADII["small"][1] + RADII["large"][0]) / 2 else "large"


def coverage(shape: str, x: float, y: float, radius: float, size: int) -> np.ndarray:
    """How much of each pixel a shape covers: float [size, size] in [0, 1], the distance to its edge clipped."""
    centres = (np.arange(size) + 0.5) / size
    distance = _DISTANCES[shape]((centres[None, :] - x) / radius, (centres[:, None] - y) / radius)
    return np.clip(0.5 - distance * radius * size, 0, 1)


def paint(objects: tuple[Object, ...], size: int) -> np.ndarray:
    """The picture of `objects`: uint8 [size, size, 3], in order, the last on top."""
    image = np.full((size, size, 3), 255.0)
    for thing in objects:
        alpha = coverage(thing.shape, thing.x, thing.y, thing.radius, size)[..., None]
        image += alpha * (np.asarray(COLOURS[thing.colour]) - image)
    return np.round(image).astype(np.uint8)


def find(image: np.ndarray) -> list[Object]:
    """The objects seen in a picture on white, uint8 [S, S, 3].

    An object is a connected patch of ink. Its shape is the one whose drawing, with the patch's area and centre of
    mass, is nearest to the patch.
    """
    from scipy import ndimage  # half a second to import, and only this needs it

    size = image.shape[0]
    ink = 255.0 - image
    labels, count = ndimage.label(ink.max(-1) > 110)  # half covered: every colour's ink is about 220
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    owner = np.where(distance <= 2, labels[tuple(nearest)], 0)  # with the pixels that an edge covers in part
    position = (np.arange(size) + 0.5) / size
    palette = 255.0 - np.array(list(COLOURS.values()))
    objects = []
    for label in range(1, count + 1):
        patch = labels == label
        if patch.sum() < 0.006 * size**2:  # a speck: the smallest object has three times that
            continue
        colour = int(np.argmax(palette @ ink[patch].sum(0) / np.linalg.norm(palette, axis=-1)))  # by hue, not depth
        alpha = np.clip(ink @ palette[colour] / (palette[colour] @ palette[colour]), 0, 1) * (owner == label)
        area = alpha.sum()
        x, y = (alpha * position).sum() / area, (alpha * position[:, None]).sum() / area
        fits = []
        for shape in SHAPES:
            radius = np.sqrt(area / _AREAS[shape]) / size
            fit = (x, y - _CENTROIDS[shape] * radius, radius)
            fits.append((((alpha - coverage(shape, *fit, size)) ** 2).sum(), shape, *fit))
        _, shape, *fit = min(fits)
        objects.append(Object(shape, tuple(COLOURS)[colour], *map(float, fit)))
    return objects
