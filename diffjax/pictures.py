"""Pictures for people: sample grids as PNG."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffjax.errors import UserError


def grid(images: UInt8[np.ndarray, "N H W C"], columns: int | None = None) -> UInt8[np.ndarray, "H W C"]:
    """Images in rows of `columns` (None: about square) with a white gap; small ones enlarged to 64 pixels or so."""
    count, size = len(images), images.shape[1]
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    enlarge = max(1, 64 // size)
    images = images.repeat(enlarge, 1).repeat(enlarge, 2)
    gap = 2
    cell_height, cell_width = images.shape[1] + gap, images.shape[2] + gap
    sheet = np.full((rows * cell_height + gap, columns * cell_width + gap, images.shape[3]), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * cell_height + gap, (i % columns) * cell_width + gap
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def class_columns(classes: int, count: int) -> int | None:
    """Columns that put a class in each, where classes take turns; None where that would not look like it."""
    return classes if 1 < classes <= min(count, 20) else None


def load(path: str | Path, size: int, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """A picture file as `size` x `size` pixels of 1, 3 or 4 channels. Raises UserError where there is none."""
    try:
        picture = Image.open(path).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    except OSError as error:
        raise UserError(f"cannot read the picture {path}: {error}") from error
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(size, size, channels)


def save(path: Path, image: UInt8[np.ndarray, "H W C"]) -> None:
    """Writes a PNG of 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
