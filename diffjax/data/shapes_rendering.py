"""Renders coloured shapes on white at any size, and detects them in an image.

Lengths are in units of the image's width; x points right, y down. Every shape fits the box [-1, 1]^2 around its centre,
scaled by its radius.
"""

from typing import Any, NamedTuple

import numpy as np

_SQUARE, _ARM = 0.88, 0.34  # half-widths, so that a square looks no larger than a circle
_TRIANGLE = np.sqrt(3) / 2  # half-height of the equilateral triangle of width 2

# Signed distance to the outline at (u, v), negative inside; exact along the edges, where it is used.
_DISTANCES = {
    "circle": lambda u, v: np.hypot(u, v) - 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) - _SQUARE,
    "triangle": lambda u, v: np.maximum(v - _TRIANGLE, (np.sqrt(3) * abs(u) - v - _TRIANGLE) / 2),
    "diamond": lambda u, v: (abs(u) + abs(v) - 1) / np.sqrt(2),
    "cross": lambda u, v: np.minimum(np.maximum(abs(u) - 1, abs(v) - _ARM), np.maximum(abs(u) - _ARM, abs(v) - 1)),
}
SHAPES = tuple(_DISTANCES)
_AREAS = {  # for radius 1
    "circle": np.pi,
    "square": 4 * _SQUARE**2,
    "triangle": np.sqrt(3),
    "diamond": 2.0,
    "cross": 8 * _ARM - 4 * _ARM**2,
}
_CENTROIDS = {shape: _TRIANGLE / 3 if shape == "triangle" else 0.0 for shape in SHAPES}  # v of the centre of mass

# No colour is a mixture of another with white, so a half-covered pixel determines the colour.
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
RADII = {"small": (0.11, 0.125), "large": (0.165, 0.185)}  # minimum, maximum


class Object(NamedTuple):
    """Shape with colour, centre and radius, in units of the image's width."""

    shape: str  # one of SHAPES
    colour: str  # one of COLOURS
    x: float  # of the centre, to the right
    y: float  # of the centre, down
    radius: float

    @property
    def size(self) -> str:
        """Name of the nearer range in RADII."""
        return "small" if self.radius < (RADII["small"][1] + RADII["large"][0]) / 2 else "large"


def coverage(shape: str, x: float, y: float, radius: float, size: int) -> np.ndarray:
    """Returns the covered fraction of each pixel: float [size, size] in [0, 1], the clipped distance to the edge."""
    centres = (np.arange(size) + 0.5) / size
    distance = _DISTANCES[shape]((centres[None, :] - x) / radius, (centres[:, None] - y) / radius)
    return np.clip(0.5 - distance * radius * size, 0, 1)


def render_objects(objects: tuple[Object, ...], size: int) -> np.ndarray:
    """Returns the image of objects on white, uint8 [size, size, 3]; later objects cover earlier ones."""
    image = np.full((size, size, 3), 255.0)
    for item in objects:
        alpha = coverage(item.shape, item.x, item.y, item.radius, size)[..., None]
        image += alpha * (np.asarray(COLOURS[item.colour]) - image)
    return np.round(image).astype(np.uint8)


def detect_objects(image: np.ndarray) -> list[Object]:
    """Returns the objects in an image on white, uint8 [S, S, 3].

    An object is a connected patch of colour. Its shape is the one whose rendering with the area and centre of mass of
    the patch is nearest to the patch.
    """
    from scipy import ndimage  # takes half a second to import

    size = image.shape[0]
    ink = 255.0 - image
    patches: Any = ndimage.label(ink.max(-1) > 110)  # half covered: the ink of every colour is about 220
    labels, count = patches
    distances: Any = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    distance, nearest = distances
    owner = np.where(distance <= 2, labels[tuple(nearest)], 0)  # includes partly covered pixels at edges
    position = (np.arange(size) + 0.5) / size
    palette = 255.0 - np.array(list(COLOURS.values()))
    objects = []
    for label in range(1, count + 1):
        patch = labels == label
        if patch.sum() < 0.006 * size**2:  # noise: the smallest object has three times this area
            continue
        colour = int(np.argmax(palette @ ink[patch].sum(0) / np.linalg.norm(palette, axis=-1)))  # by hue, not intensity
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
