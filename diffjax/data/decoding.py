"""Decoding of records to square uint8 images."""

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor

from diffjax.data import image_files
from diffjax.data.records import Record, Records
from diffjax.errors import UserError, unknown

FITS = ("center_crop", "random_crop", "pad", "stretch")
CHANNELS = (0, 1, 3, 4)  # 0: as the data have them
_INSPECTED = 256  # images whose headers are read to determine the number of channels

Pixels = UInt8[np.ndarray, "H W C"]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Decodes images to one size and number of channels."""

    image_size: int  # height and width in pixels
    channels: int  # 1, 3 or 4
    fit: str  # one of FITS: how images that are not square become square
    background: str  # colour that alpha is composited onto and images are padded with; "transparent": alpha is kept

    def __post_init__(self):
        check_fit(self.fit)
        if self.channels not in CHANNELS[1:]:
            raise UserError(f"data.channels={self.channels}: must be 1, 3 or 4, or 0 for that of the data set")
        if self.background == "transparent" and self.channels != 4:
            raise UserError(
                f"data.background=transparent: requires 4 channels, not data.channels={self.channels}; choose a colour"
            )
        parse_colour(self.background)

    def __call__(self, record: Record, name: str) -> Pixels:
        """Returns the decoded image, [image_size, image_size, C]; for "random_crop", one side may be larger.

        Raises:
          UserError: the image cannot be read; the message names it.
        """
        size, colour = self.image_size, parse_colour(self.background)
        if isinstance(record.image, bytes):
            image = image_files.decode(record.image, name, min_side=2 * size)
        else:
            image = Image.fromarray(image_files.array_to_uint8(record.image, name).squeeze())
        pixels = image_files.to_pixels(image, self.channels, colour)
        height, width = pixels.shape[:2]
        side = min(height, width)
        if self.fit == "stretch":
            return image_files.resize_to(pixels, size, size)
        if self.fit == "random_crop":
            return image_files.resize_to(
                pixels, max(size, round(size * height / side)), max(size, round(size * width / side))
            )
        if self.fit == "pad":
            return image_files.resize(_pad(pixels, self.background), size)
        return image_files.resize(image_files.crop(pixels, side), size)


def check_fit(fit: str) -> None:
    """Raises UserError for a fit that is not among FITS."""
    if fit not in FITS:
        raise unknown("data.fit", fit, FITS)


def parse_colour(text: str) -> tuple[int, int, int]:
    """Returns the red, green and blue of a colour, from 0 to 255; those of "transparent" are 0.

    Raises:
      UserError: the text is neither a name of CSS nor #rrggbb.
    """
    if text == "transparent":
        return 0, 0, 0
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UserError(
            f"data.background={text}: is not a colour; use white, black, another name of CSS, #rrggbb, or transparent"
        ) from None
    return red, green, blue


def infer_channels(records: Records, background: str) -> int:
    """Returns the number of channels of an image set: 4 for a transparent background, else 1 (grey) or 3 (colour).

    Reads the headers of at most 256 images, evenly spaced. Unreadable ones are left out here.

    Raises:
      UserError: some images are grey and some are coloured.
    """
    if background == "transparent":
        return 4
    examples: dict[int, str] = {}
    for i in np.unique(np.linspace(0, records.length - 1, _INSPECTED).astype(int)).tolist():
        name = records.name_of(i)
        try:
            image = records.read(i).image
            is_file = isinstance(image, bytes)
            count = image_files.count_colours(image, name) if is_file else _count_colours(image)
        except Exception:  # reported, or skipped, when the example is read
            continue
        examples.setdefault(count, name)
    if len(examples) > 1:
        raise UserError(
            f"data.channels=0: {examples[1]} is grey, but {examples[3]} has colours; set data.channels to 1 (grey) "
            "or 3, and all are converted"
        )
    return next(iter(examples), 3)


def _count_colours(pixels: np.ndarray) -> int:
    return 1 if pixels.ndim == 2 or pixels.shape[-1] == 1 else 3


def _pad(pixels: Pixels, background: str) -> Pixels:
    """Returns an image in the centre of a square of the background colour."""
    height, width, channels = pixels.shape
    side = max(height, width)
    alpha = 0 if background == "transparent" else 255
    canvas = Image.new("RGBA", (side, side), (*parse_colour(background), alpha))
    square = image_files.to_pixels(canvas if channels == 4 else canvas.convert("RGB"), channels, (0, 0, 0)).copy()
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square
