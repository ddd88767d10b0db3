"""Pictures for people: sample grids as PNG."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from diffjax import io

_TITLE = 16  # height of a row's title


def grid(
    images: UInt8[np.ndarray, "N H W C"], columns: int | None = None, titles: Sequence[str] = ()
) -> UInt8[np.ndarray, "H W C"]:
    """Images in rows of `columns` (None: about square) with a white gap; small ones enlarged to 64 pixels or so.

    `titles`, where there are any, stand above the rows.
    """
    count, size = len(images), images.shape[1]
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    enlarge = max(1, 64 // size)
    images = images.repeat(enlarge, 1).repeat(enlarge, 2)
    gap, above = 2, _TITLE if titles else 0
    cell_height, cell_width = above + images.shape[1] + gap, images.shape[2] + gap
    width = max([columns * cell_width, *(math.ceil(_font().getlength(title)) for title in titles)])
    sheet = np.full((rows * cell_height + gap, width + gap, images.shape[3]), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * cell_height + gap + above, (i % columns) * cell_width + gap
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    for row, title in enumerate(titles):
        strip = Image.new("L", (width + gap, above), 255)
        ImageDraw.Draw(strip).text((gap, 0), title, fill=0, font=_font())
        sheet[row * cell_height + gap :][:above, :, :3] = np.asarray(strip)[..., None]
    return sheet


@functools.cache
def _font():
    return ImageFont.load_default(_TITLE - 4)


def class_columns(classes: int, count: int) -> int | None:
    """Columns that put a class in each, where classes take turns; None where that would not look like it."""
    return classes if 1 < classes <= min(count, 20) else None


def save(path: Path, image: UInt8[np.ndarray, "H W C"]) -> None:
    """Writes a PNG of 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.atomic_path(path) as temporary:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, format="PNG")
