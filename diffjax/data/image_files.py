"""Reads image files of common formats as uint8 pixels, for `--image`, `--mask` and data preparation.

An image is rotated by its EXIF orientation, cropped to its central square, resized in floating point, and composited
onto white unless the alpha channel is requested. Colour profiles are ignored: colours are read as sRGB.
"""

import io as bytes_io
import sys
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from diffjax import io
from diffjax.compositing import composite_on_white
from diffjax.errors import UserError, excerpt

MAX_PIXELS = 2**26  # per image, such as 8192 x 8192; decoding and resizing takes less than 2 GiB
MAX_BYTES = 2**28  # per image file
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # other formats run programs (EPS) or are rare
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
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

    Grey of 16 bits is scaled to 8 bits by 1/257, floating point from [0, 1]. Of an animation, the first frame is read
    and one line is printed. Memory is bounded by MAX_PIXELS and MAX_BYTES.

    Raises:
      UserError: the file cannot be opened, is not an image of a supported format, is damaged (the checksums of a PNG
        are verified), is larger than the bounds, or has values without a defined range.
    """
    try:
        content = io.read_bytes(path, MAX_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage is an error or harmless; sizes are checked below
            with _open(content, path) as image:
                image.verify()
            with _open(content, path) as image:  # `verify` leaves an image unusable
                if getattr(image, "is_animated", False):
                    print(f"{path} has several frames: using the first", file=sys.stderr)
                image.load()
                _check_size(image, path)
                return np.asarray(ImageOps.exif_transpose(_eight_bits(image, path)).convert("RGBA"))
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {_TOO_LARGE}") from error
    except OSError as error:
        if error.strerror:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        raise _unreadable(path, error) from error
    except Exception as error:  # a damaged file can raise nearly any exception
        raise _unreadable(path, error) from error


def resize(
    image: UInt8[np.ndarray, "S S C"], size: int, *, enlarge: Image.Resampling = Image.Resampling.BICUBIC
) -> UInt8[np.ndarray, "size size C"]:
    """Returns a square image at another size: the mean over areas to shrink, bicubic by default to enlarge.

    Computed in floating point and rounded once. With alpha (C = 4), colours are weighted by it, so that invisible
    colours do not appear at edges, and are 0 where alpha is 0. An image of the given size is returned unchanged.

    Args:
      image: square image.
      size: height and width in pixels.
      enlarge: kernel for enlarging.

    Raises:
      ValueError: the image is not square.
    """
    if image.shape[0] != image.shape[1]:
        raise ValueError(f"image: must be square, not {image.shape[1]}x{image.shape[0]} pixels")
    if image.shape[0] == size:
        return image
    kernel = Image.Resampling.BOX if size < image.shape[0] else enlarge

    def resized(channel: int) -> np.ndarray:
        values = image[..., channel].astype(np.float32)
        if image.shape[-1] == 4 and channel < 3:
            values *= image[..., 3].astype(np.float32) / 255
        return np.asarray(Image.fromarray(values).resize((size, size), kernel))

    values = np.clip(np.stack([resized(channel) for channel in range(image.shape[-1])], axis=-1), 0, 255)
    if image.shape[-1] == 4:
        alpha = values[..., 3:]
        values[..., :3] *= np.where(alpha < 0.5, 0, 255 / np.maximum(alpha, 0.5))
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def on_white(image: UInt8[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns RGBA pixels composited onto white."""
    return np.round(composite_on_white(image, 0.0, 255.0)).astype(np.uint8)


_TOO_LARGE = f"larger than {MAX_PIXELS:,} pixels; use a smaller image"


def _cropped(path: str | Path) -> UInt8[np.ndarray, "S S 4"]:
    """Returns the central square of an image file, and prints one line unless that is all of it."""
    pixels = read_rgba(path)
    height, width = pixels.shape[:2]
    side = min(height, width)
    if height != width:
        print(f"{path} has {width}x{height} pixels: using the central {side}x{side}", file=sys.stderr)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


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
    if not (values.min() >= 0 and values.max() <= most):  # NaN included
        raise UserError(f"{path}: values from {values.min()} to {values.max()}; scale them to [0, {most}]")
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white, which Pillow knows of 8 bits only
        values = most - values
    scaled = Image.fromarray(np.round(values.astype(np.float32) * (255 / most)).astype(np.uint8))
    orientation = image.getexif().get(274)
    if orientation is not None:
        scaled.getexif()[274] = orientation
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # a grey level of the file
        scaled.putalpha(Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)))
    return scaled


def _unreadable(path: str | Path, error: Exception) -> UserError:
    reason = "not an image, or damaged" if isinstance(error, Image.UnidentifiedImageError) else excerpt(str(error))
    return UserError(f"{path}: cannot be read as an image ({reason}); use a whole {', '.join(_FORMATS)} file")
