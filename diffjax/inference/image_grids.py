"""Grids of images, and image files with the settings that they were sampled with.

A grid has the images in rows and columns on a grey background, which separates them and shows the borders of black,
white and transparent images. Labels are on the left of the rows and above the columns. A PNG of a grid stores where its
images are, so that `read_images` returns their pixels.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from diffjax import io
from diffjax.compositing import composite
from diffjax.errors import UserError, one_line

# File format and options of Pillow by suffix. WebP is lossless.
FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95},
    ".jpeg": {"format": "JPEG", "quality": 95},
    ".webp": {"format": "WEBP", "lossless": True},
}
BACKGROUND = 160  # grey level between images and around labels
GAP = 2  # width of the separators, pixels
_SETTINGS, _GEOMETRY = "diffjax", "diffjax_grid"  # keywords of PNG text chunks
_FONT_SIZE, _LINE, _MARGIN = 11, 14, 5  # of labels: size of the font, height of a line, and margin, pixels
_MAX_LABEL, _MIN_TITLE = 200, 400  # largest width of a row's label and of a title above a narrower grid, pixels
_MAX_LINES = 4  # of a title, and of a column's label
_MAX_CHARACTERS = 300  # of a label


class Layout(NamedTuple):
    """Rows and columns of a grid.

    Attributes:
      columns: number of images per row; None: an approximately square grid.
      row_labels: text on the left of each row; (): no labels.
      column_labels: text above each column; (): no labels.
      title: text above the grid.
    """

    columns: int | None = None
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    title: str = ""


SQUARE = Layout()


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Places of images in a grid, in pixels.

    Attributes:
      count: number of images.
      columns: number of images per row.
      height, width: size of an image.
      scale: whole factor by which the images are enlarged.
      top, left: position of the first image.
      row_step, column_step: distance from one image to the next.
    """

    count: int
    columns: int
    height: int
    width: int
    scale: int
    top: int
    left: int
    row_step: int
    column_step: int

    def box(self, i: int) -> tuple[slice, slice]:
        """Returns the rows and columns of pixels of image `i`."""
        top = self.top + i // self.columns * self.row_step
        left = self.left + i % self.columns * self.column_step
        return slice(top, top + self.height * self.scale), slice(left, left + self.width * self.scale)


class Grid(NamedTuple):
    """A grid as one image, and the places of its images."""

    pixels: UInt8[np.ndarray, "H W C"]
    geometry: Geometry

    @property
    def images(self) -> UInt8[np.ndarray, "N h w C"]:
        """The images, in their own size."""
        scale = self.geometry.scale
        boxes = (self.pixels[self.geometry.box(i)] for i in range(self.geometry.count))
        return np.stack([pixels[::scale, ::scale] for pixels in boxes])


def grid(
    images: UInt8[np.ndarray, "N h w C"], layout: Layout = SQUARE, *, enlarge_to: int = 64, gap: int = GAP
) -> Grid:
    """Arranges images in rows.

    Args:
      images: in [0, 255], of 1 (grey), 3 (RGB) or 4 (RGBA) channels, which are those of the grid.
      layout: rows, columns and their labels. Labels that do not fit are cut.
      enlarge_to: images are enlarged to at most this size in pixels, by a whole factor and by nearest neighbour; larger
        images keep their size.
      gap: width of the separators, pixels.
    """
    count, height, width, channels = images.shape
    columns = layout.columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    if layout.row_labels and len(layout.row_labels) != rows:
        raise ValueError(f"{len(layout.row_labels)} labels for {rows} rows")
    if layout.column_labels and len(layout.column_labels) != columns:
        raise ValueError(f"{len(layout.column_labels)} labels for {columns} columns")
    scale = max(1, enlarge_to // max(height, width))
    cell_height, cell_width = height * scale, width * scale
    row_labels = [_wrap(text, _MAX_LABEL, max(1, cell_height // _LINE)) for text in layout.row_labels]
    column_labels = [_wrap(text, cell_width, _MAX_LINES) for text in layout.column_labels]

    left = _width(itertools.chain(*row_labels)) + 2 * _MARGIN if row_labels else 0
    body = left + columns * (cell_width + gap) + gap
    title = _wrap(layout.title, max(body, _MIN_TITLE) - 2 * _MARGIN, _MAX_LINES)
    above = len(title) * _LINE + _MARGIN if title else 0
    top = above + (max(map(len, column_labels)) * _LINE if column_labels else 0)
    places = Geometry(count, columns, height, width, scale, top + gap, left + gap, cell_height + gap, cell_width + gap)
    size = max(body, _width(title) + _MARGIN), top + rows * (cell_height + gap) + gap
    canvas = Image.new("L", size, BACKGROUND)
    _write(canvas, title, (_MARGIN, above / 2), "lm")
    for i, lines in enumerate(row_labels):
        place = left - _MARGIN, places.top + i * places.row_step + cell_height / 2
        _write(canvas, lines, place, "rm")
    for i, lines in enumerate(column_labels):
        place = places.left + i * places.column_step + cell_width / 2, top - len(lines) * _LINE / 2
        _write(canvas, lines, place, "mm")
    pixels = np.repeat(np.asarray(canvas)[..., None], channels, axis=2)
    pixels[..., 3:] = 255
    for i, image in enumerate(images.repeat(scale, 1).repeat(scale, 2)):
        pixels[places.box(i)] = image
    return Grid(pixels, places)


def pairs(images: UInt8[np.ndarray, "N h w C"], reconstructions: UInt8[np.ndarray, "N h w C"]) -> Grid:
    """Returns a grid of images above their reconstructions."""
    return grid(np.concatenate([images, reconstructions]), Layout(len(images), ("images", "reconstructions")))


def to_rgb(images: UInt8[np.ndarray, "N h w C"]) -> UInt8[np.ndarray, "N h w 3"]:
    """Returns images of 1, 3 or 4 channels as RGB, transparent ones on white."""
    if images.shape[-1] == 4:
        return np.round(composite(images, 0.0, 255.0)).astype(np.uint8)
    return np.broadcast_to(images, (*images.shape[:-1], 3))


def pad(image: UInt8[np.ndarray, "h w C"], height: int, width: int) -> UInt8[np.ndarray, "H W C"]:
    """Returns an image with background at the bottom and on the right, at least `height` high and `width` wide."""
    missing = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=BACKGROUND)


def class_layout(classes: int, count: int, names: Sequence[str] = ()) -> Layout:
    """Returns a layout with whole columns of one class, for samples whose classes alternate.

    The classes are repeated over the columns as often as makes the grid approximately square. Without classes, or with
    more than 20 classes or fewer samples than classes, the columns are not those of classes.

    Args:
      classes: number of classes.
      count: number of samples.
      names: names of the classes; other numbers of names are not used.
    """
    if not 1 < classes <= min(count, 20):
        return SQUARE
    columns = classes * max(1, round(math.sqrt(count) / classes))
    return Layout(columns, column_labels=[class_label(i % classes, classes, names) for i in range(columns)])


def class_label(label: int, classes: int, names: Sequence[str] = ()) -> str:
    """Returns the name of a class, or its number if the classes have no names."""
    return names[label] if len(names) == classes else f"class {label}"


def _wrap(text: str, width: int, max_lines: int) -> list[str]:
    """Returns text as lines of at most `width` pixels; what exceeds `max_lines` is cut."""
    text = one_line(text)[:_MAX_CHARACTERS]
    for characters in range(min(len(text), width // 3), 0, -1):  # no letter is narrower than 3 pixels
        lines = textwrap.wrap(text, characters, max_lines=max_lines, placeholder="…")
        if _width(lines) <= width:
            return lines
    return []


def _width(lines: Any) -> int:
    return max((math.ceil(_font().getlength(line)) for line in lines), default=0)


def _write(canvas: Image.Image, lines: Sequence[str], place: tuple[float, float], anchor: str) -> None:
    """Writes lines in black, centred vertically at `place`."""
    for i, line in enumerate(lines):
        y = place[1] + (i - (len(lines) - 1) / 2) * _LINE
        ImageDraw.Draw(canvas).text((place[0], y), line, fill=0, font=_font(), anchor=anchor)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """Returns the font of plots, DejaVu Sans, which has the letters of most alphabets."""
    import matplotlib  # takes 0.2 s, which only grids with labels need

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT_SIZE)


def save(path: Path, image: UInt8[np.ndarray, "H W C"] | Grid, settings: Mapping[str, Any] | None = None) -> None:
    """Writes an image of 1 (grey), 3 (RGB) or 4 (RGBA) channels, or a grid.

    Args:
      path: file; its suffix, one of FORMATS, is the format. JPEG does not support 4 channels.
      settings: JSON values to store in a text chunk; only PNG files store them, and the geometry of a grid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options, chunks = FORMATS[path.suffix.lower()], PngImagePlugin.PngInfo()
    if settings is not None:
        chunks.add_itxt(_SETTINGS, io.to_json(settings))
    if isinstance(image, Grid):
        chunks.add_itxt(_GEOMETRY, io.to_json(dataclasses.asdict(image.geometry)))
        image = image.pixels
    if options["format"] == "PNG":
        options = {**options, "pnginfo": chunks}
    with io.atomic_path(path) as temporary:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, **options)


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings that `save` stored in a PNG.

    Raises:
      UserError: the file cannot be read, or has no settings.
    """
    with _open(path) as image:
        settings = _chunk(image, _SETTINGS)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: has no sampling settings; name a PNG of launch.py sample")
    return settings


def read_images(path: Path) -> UInt8[np.ndarray, "N h w C"]:
    """Returns the images of a grid that `save` wrote as a PNG: the pixels of the samples, without separators.

    Raises:
      UserError: the file cannot be read, or is not a grid.
    """
    with _open(path) as image:
        fields, pixels = _chunk(image, _GEOMETRY), np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if not isinstance(fields, dict) or fields.keys() != {field.name for field in dataclasses.fields(Geometry)}:
        raise UserError(f"{path}: is not a grid of images; name a PNG of launch.py sample")
    if not _is_valid(fields, pixels.shape):
        raise UserError(f"{path}: the places of its images are damaged; name another PNG of launch.py sample")
    return Grid(pixels, Geometry(**fields)).images


def _is_valid(fields: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Returns whether the fields of a Geometry are places of separate images in pixels of a shape."""
    if any(type(value) is not int or value < 1 for value in fields.values()):
        return False
    geometry = Geometry(**fields)
    last, end = geometry.box(geometry.count - 1), geometry.box(min(geometry.count, geometry.columns) - 1)
    return (
        geometry.row_step >= geometry.height * geometry.scale
        and geometry.column_step >= geometry.width * geometry.scale
        and last[0].stop <= shape[0]
        and end[1].stop <= shape[1]
    )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Opens a PNG. Raises UserError if it cannot be read."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: is not a PNG that can be read ({error}); name a PNG of launch.py sample") from error


def _chunk(image: Image.Image, keyword: str) -> Any:
    """Returns the JSON value of a text chunk; None without it."""
    text = image.info.get(keyword)
    return None if text is None else io.from_json(text)
