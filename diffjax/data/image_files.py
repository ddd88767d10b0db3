"""Reads image files of common formats as uint8 pixels, for `--image`, `--mask`, data sets and data preparation.

An image is rotated by its EXIF orientation, cropped to its central square, resized in floating point, and composited
onto a background unless the alpha channel is requested. Colour profiles are ignored: colours are read as sRGB.
"""

import io as bytes_io
import math
import sys
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from diffjax import compositing, io
from diffjax.errors import UserError, excerpt

MAX_PIXELS = 2**26  # per image, such as 8192 x 8192; decoding and resizing takes less than 2 GiB
MAX_BYTES = 2**28  # per image file
warnings.filterwarnings("ignore", module=r"PIL\.")  # damage is an error or harmless; sizes are checked
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # other formats run programs (EPS) or are rare
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PHOTOMETRIC, _BITS, _TILE_SIDES = 262, 258, (322, 323)  # TIFF tags


def load_image(path: str | Path, size: int, channels: int) -> UInt8[np.ndarray, "size size channels"]:
    """Returns the central square of an image file as `size` x `size` pixels.

    Prints one line if that crops the image or leaves out frames of an animation.

    Args:
      path: image file.
      size: height and width in pixels, see `resize`.
      channels: 1 (grey, by ITU-R BT.601) and 3 (RGB), composited onto white; or 4 (RGBA, colour 0 where alpha is 0).

    Raises:
      UserError: the file cannot be read as an image; the message names it.
    """
    pixels = resize(_cropped(path), size)
    if channels == 4:
        return np.where(pixels[..., 3:] > 0, pixels, 0)
    return np.asarray(Image.fromarray(on_white(pixels)).convert(_MODES[channels])).reshape(size, size, channels)


def load_mask(path: str | Path, size: int) -> Bool[np.ndarray, "size size"]:
    """Returns the central square of a mask file: True where at least half of a pixel's area is white.

    A mask is cropped as an image of the same proportions in `load_image`. It is shrunk by the mean over areas, or
    enlarged by nearest neighbour, and its grey level is compared with 50 %. Transparent areas count as white.

    Raises:
      UserError: the file cannot be read as an image; the message names it.
    """
    pixels = resize(_cropped(path), size, enlarge=Image.Resampling.NEAREST)
    return np.asarray(Image.fromarray(on_white(pixels)).convert("L")) >= 128


def read_rgba(path: str | Path) -> UInt8[np.ndarray, "H W 4"]:
    """Returns an image file as upright RGBA pixels, alpha not premultiplied.

    See `decode`, and of an animation, one line is printed.

    Raises:
      UserError: the file cannot be opened, or an error of `decode`.
    """
    return np.asarray(decode(read_file(path), path, note_frames=True).convert("RGBA"))


def read_file(path: str | Path) -> bytes:
    """Returns the content of an image file. Raises UserError if it cannot be read or has more than MAX_BYTES."""
    try:
        return io.read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise _unreadable(path, error) from error


def decode(content: bytes, name: str | Path, *, min_side: int = 0, note_frames: bool = False) -> Image.Image:
    """Returns the upright image of a file's content, with 8 bits per channel, alpha not premultiplied.

    Grey of 16 bits is scaled to 8 bits by 1/257, floating point from [0, 1]. Of an animation, the first frame is read.
    Memory is bounded by MAX_PIXELS.

    Args:
      content: bytes of the file.
      name: file name, for messages.
      min_side: JPEG files may be decoded at 1/2, 1/4 or 1/8 of their size if the result has at least this side, in
        pixels; this is several times faster. 0: full size.
      note_frames: print one line for an animation.

    Raises:
      UserError: the content is not an image of a supported format, is damaged (the checksums of a PNG are verified),
        is larger than the bounds, or has values without a defined range.
    """
    try:
        image = _open(content, name)
        if image.format != "JPEG":
            image.verify()  # leaves the image unusable
            image = _open(content, name)
        elif min_side:
            image.draft(image.mode, (min_side, min_side))
        if note_frames and getattr(image, "is_animated", False):
            print(f"{name} has several frames: using the first", file=sys.stderr)
        image.load()
        _check_size(image, name)
        image = _eight_bits(image, name)
        ImageOps.exif_transpose(image, in_place=True)
        return image
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: {_TOO_LARGE}") from error
    except Image.UnidentifiedImageError as error:
        if content[:4] in _TIFF_MARKS:
            return _decode_tiff(content, name)
        raise _unreadable(name, error) from error
    except Exception as error:  # a damaged file can raise nearly any exception
        raise _unreadable(name, error) from error


def crop(
    image: UInt8[np.ndarray, "H W C"], size: int, position: tuple[float, float] = (0.5, 0.5)
) -> UInt8[np.ndarray, "size size C"]:
    """Returns a square of an image.

    Args:
      image: image of at least `size` pixels high and wide.
      size: side of the square in pixels.
      position: position of the square, vertical and horizontal: 0 is the top or left edge, 1 the bottom or right one.
        An odd margin is one pixel smaller at the top or left of the centre. Uniform positions are equally likely.
    """
    spaces = (side - size for side in image.shape[:2])
    top, left = (max(math.ceil(p * (space + 1)) - 1, 0) for p, space in zip(position, spaces, strict=True))
    return image[top : top + size, left : left + size]


def resize(
    image: UInt8[np.ndarray, "S S C"], size: int, *, enlarge: Image.Resampling = Image.Resampling.BICUBIC
) -> UInt8[np.ndarray, "size size C"]:
    """Returns a square image at another size, see `resize_to`.

    Raises:
      ValueError: the image is not square.
    """
    if image.shape[0] != image.shape[1]:
        raise ValueError(f"image: must be square, not {image.shape[1]}x{image.shape[0]} pixels")
    return resize_to(image, size, size, enlarge=enlarge)


def resize_to(
    image: UInt8[np.ndarray, "h w C"],
    height: int,
    width: int,
    *,
    enlarge: Image.Resampling = Image.Resampling.BICUBIC,
) -> UInt8[np.ndarray, "height width C"]:
    """Returns an image at another size: the mean over areas to shrink a side, bicubic by default to enlarge it.

    Computed in floating point and rounded once. With alpha (C = 4), colours are weighted by it, so that invisible
    colours do not appear at edges, and are 0 where alpha is 0. An image of the given size is returned unchanged.

    Args:
      image: image of any size.
      height: new height in pixels.
      width: new width in pixels.
      enlarge: kernel for enlarging.
    """
    if image.shape[:2] == (height, width):
        return image
    across = Image.Resampling.BOX if width < image.shape[1] else enlarge
    down = Image.Resampling.BOX if height < image.shape[0] else enlarge

    def resized(channel: int) -> np.ndarray:
        floats = Image.fromarray(np.ascontiguousarray(image[..., channel])).convert("F")
        if image.shape[-1] == 4 and channel < 3:
            floats = Image.fromarray(np.asarray(floats) * (image[..., 3].astype(np.float32) / 255))
        if across != down:
            floats = floats.resize((width, floats.height), across)
        return np.asarray(floats.resize((width, height), down))

    values = np.clip(np.stack([resized(channel) for channel in range(image.shape[-1])], axis=-1), 0, 255)
    if image.shape[-1] == 4:
        alpha = values[..., 3:]
        values[..., :3] *= np.where(alpha < 0.5, 0, 255 / np.maximum(alpha, 0.5))
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def on_white(image: UInt8[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns RGBA pixels composited onto white."""
    return composite(image, (255, 255, 255))


def composite(image: UInt8[np.ndarray, "H W 4"], colour: tuple[int, int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns RGBA pixels composited onto a colour, values from 0 to 255."""
    return np.round(compositing.composite(image, 0.0, 255.0, np.array(colour))).astype(np.uint8)


def to_pixels(image: Image.Image, channels: int, background: tuple[int, int, int]) -> UInt8[np.ndarray, "H W C"]:
    """Returns the pixels of an image as `decode` returns it.

    Args:
      image: image of any mode of 8 bits per channel.
      channels: 1 (grey, by ITU-R BT.601), 3 (RGB) or 4 (RGBA).
      background: colour that alpha is composited onto unless `channels` is 4, values from 0 to 255.
    """
    if channels < 4 and has_alpha(image):
        image = Image.fromarray(composite(np.asarray(image.convert("RGBA")), background))
    mode = _MODES[channels]
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))  # `convert` always copies
    return pixels.reshape(*pixels.shape[:2], channels)


def has_alpha(image: Image.Image) -> bool:
    """Returns whether an image has an alpha channel, or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def count_colours(content: bytes, name: str | Path) -> int:
    """Returns the colour channels of an image file, 1 (grey) or 3, without alpha; reads its header only.

    Raises:
      UserError: the content is not an image of a supported format.
    """
    try:
        mode = _open(content, name).mode
    except UserError:
        raise
    except Exception as error:
        if content[:4] not in _TIFF_MARKS:
            raise _unreadable(name, error) from error
        mode = decode(content, name).mode
    return 1 if mode in ("1", "L", "LA", "La", "F", "I") or mode.startswith("I;") else 3


_TOO_LARGE = f"larger than {MAX_PIXELS:,} pixels; use a smaller image"


def _cropped(path: str | Path) -> UInt8[np.ndarray, "S S 4"]:
    """Returns the central square of an image file, and prints one line unless that is all of it."""
    pixels = read_rgba(path)
    height, width = pixels.shape[:2]
    side = min(height, width)
    if height != width:
        print(f"{path} has {width}x{height} pixels: using the central {side}x{side}", file=sys.stderr)
    return crop(pixels, side)


def _open(content: bytes, path: str | Path) -> Image.Image:
    image = Image.open(bytes_io.BytesIO(content), formats=_FORMATS)
    _check_size(image, path)
    return image


def _check_size(image: Image.Image, path: str | Path) -> None:
    """Raises UserError for an image, or a tile of a TIFF, of no pixels or more than MAX_PIXELS."""
    sides = [image.size]
    if isinstance(image, TiffImageFile) and all(tag in image.tag_v2 for tag in _TILE_SIDES):
        width, height = (image.tag_v2[tag] for tag in _TILE_SIDES)
        sides.append((width, height))
    if any(width * height > MAX_PIXELS for width, height in sides):
        raise UserError(f"{path}: {_TOO_LARGE}")
    if 0 in image.size:
        raise UserError(f"{path}: has no pixels; use another image")


def _eight_bits(image: Image.Image, path: str | Path) -> Image.Image:
    """Returns an image whose channels have 8 bits: Pillow clips others instead of scaling them.

    Raises:
      UserError: the values are outside the range of their kind.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    values = np.asarray(image)
    most = 1 if image.mode == "F" else 65535
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if tags.get(_BITS) == (12,):
        most = 4095
    scaled_values = _scaled(values, most, path)
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white, which Pillow knows of 8 bits only
        scaled_values = _scaled(most - values, most, path)
    scaled = Image.fromarray(scaled_values)
    orientation = image.getexif().get(274)
    if orientation is not None:
        scaled.getexif()[274] = orientation
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # a grey level of the file
        scaled.putalpha(Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)))
    return scaled


def _decode_tiff(content: bytes, name: str | Path) -> Image.Image:
    """Decodes the first page of a TIFF of a kind that Pillow lacks, such as floating-point colours."""
    import tifffile

    try:
        with tifffile.TiffFile(bytes_io.BytesIO(content)) as file:
            page = file.pages.first
            if page.size > 4 * MAX_PIXELS:
                raise UserError(f"{name}: {_TOO_LARGE}")
            pixels = np.asarray(page.asarray())
            if page.planarconfig == 2 and pixels.ndim == 3:  # one plane per channel
                pixels = np.moveaxis(pixels, 0, -1)
        return Image.fromarray(array_to_uint8(pixels, name).squeeze())
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error


def array_to_uint8(values: np.ndarray, name: str | Path) -> UInt8[np.ndarray, "H W C"]:
    """Returns an image array with 8 bits per channel: 16 bits are scaled by 1/257, floating point from [0, 1].

    Args:
      values: [H, W] or [H, W, C] with 1, 3 or 4 channels: uint8, uint16, bool or floating point.
      name: name for messages.

    Raises:
      UserError: another shape or dtype, or values out of range.
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] not in _MODES or 0 in values.shape:
        raise UserError(f"{name}: an array of shape {values.shape}; images must be [H, W], or [H, W, 1, 3 or 4]")
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype != np.uint16 and not np.issubdtype(values.dtype, np.floating):
        raise UserError(f"{name}: an array of {values.dtype}; use uint8, uint16, or floating point in [0, 1]")
    white = 65535 if values.dtype == np.uint16 else 1
    return _scaled(values, white, name)


def _scaled(values: np.ndarray, white: int, name: str | Path) -> np.ndarray:
    """Returns values from [0, white] as uint8. Raises UserError for values out of range."""
    if not (values.min() >= 0 and values.max() <= white):  # NaN included
        raise UserError(f"{name}: values from {values.min()} to {values.max()}; scale them to [0, {white}]")
    return np.round(values.astype(np.float32) * (255 / white)).astype(np.uint8)


def _unreadable(path: str | Path, error: Exception) -> UserError:
    reason = "not an image, or damaged" if isinstance(error, Image.UnidentifiedImageError) else excerpt(str(error))
    return UserError(f"{path}: cannot be read as an image ({reason}); use a whole {', '.join(_FORMATS)} file")
