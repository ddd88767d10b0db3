"""Grids of images, and image files with the settings that they were sampled with."""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from diffjax import io
from diffjax.errors import UserError

# File format and options of Pillow by suffix. WebP is lossless.
FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95},
    ".jpeg": {"format": "JPEG", "quality": 95},
    ".webp": {"format": "WEBP", "lossless": True},
}
_CHUNK = "diffjax"  # keyword of the PNG text chunk with settings
_TITLE = 16  # height of a row's title, pixels
_GAP = 2  # width of the white border around each image, pixels


def grid(
    images: UInt8[np.ndarray, "N H W C"], columns: int | None = None, titles: Sequence[str] = ()
) -> UInt8[np.ndarray, "H W C"]:
    """Arranges images in rows, separated by white borders. Small images are enlarged to about 64 pixels.

    Args:
      images: uint8 in [0, 255].
      columns: number of images per row; None: an approximately square grid.
      titles: text above each row; (): no titles.
    """
    count, size = len(images), images.shape[1]
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = max(1, 64 // size)
    images = images.repeat(scale, 1).repeat(scale, 2)
    above = _TITLE if titles else 0
    cell_height, cell_width = above + images.shape[1] + _GAP, images.shape[2] + _GAP
    width = max([columns * cell_width, *(math.ceil(_font().getlength(title)) for title in titles)])
    canvas = np.full((rows * cell_height + _GAP, width + _GAP, images.shape[3]), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * cell_height + _GAP + above, (i % columns) * cell_width + _GAP
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    for row, title in enumerate(titles):
        strip = Image.new("L", (width + _GAP, above), 255)
        ImageDraw.Draw(strip).text((_GAP, 0), title, fill=0, font=_font())
        canvas[row * cell_height + _GAP :][:above, :, :3] = np.asarray(strip)[..., None]
    return canvas


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TITLE - 4)


def class_columns(classes: int, count: int) -> int | None:
    """Returns the number of columns that gives each class its own column; None if there are too few or many classes."""
    return classes if 1 < classes <= min(count, 20) else None


def save(path: Path, image: UInt8[np.ndarray, "H W C"], settings: Mapping[str, Any] | None = None) -> None:
    """Writes an image of 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    Args:
      path: file; its suffix, one of FORMATS, is the format. JPEG does not support 4 channels.
      settings: JSON values to store in a text chunk; only PNG files store them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = FORMATS[path.suffix.lower()]
    if settings is not None and options["format"] == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(_CHUNK, io.to_json(settings))
        options = {**options, "pnginfo": chunks}
    with io.atomic_path(path) as temporary:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, **options)


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings that `save` stored in a PNG.

    Raises:
      UserError: the file cannot be read, or has no settings.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(_CHUNK)
        settings = io.from_json(text) if text is not None else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: is not a PNG that can be read ({error}); name a PNG of launch.py sample") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: has no sampling settings; name a PNG of launch.py sample")
    return settings
