"""Image files against known pixels, and invalid files, which raise one line."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffjax.data import emoji, image_files
from diffjax.errors import UserError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (8, 8, 3), np.uint8)
GREY, RGB, PALETTE, RGBA = 0, 2, 3, 6  # PNG's colour types


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows, *, width, bits=8, colour_type=GREY, height=None, before=b"", data=None):
    """A PNG file by its specification: `rows` of bytes, each with the filter type 0."""
    header = struct.pack(">IIBBBBB", width, height or len(rows), bits, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows)) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def write(path, content):
    path.write_bytes(content)
    return path


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def refused(path, function=image_files.read_rgba):
    with pytest.raises(UserError) as error:
        function(path)
    message = str(error.value)
    assert path.name in message and "\n" not in message and len(message) < 500
    return message


# --- values ---


def test_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    levels = np.arange(8, dtype=">u2") * 36 * 257
    path = write(tmp_path / "ramp.png", png([levels.tobytes()] * 8, width=8, bits=16))
    np.testing.assert_array_equal(image_files.load_image(path, 8, 1)[..., 0], np.tile(np.arange(8) * 36, (8, 1)))
    everything = np.arange(65536, dtype=">u2").reshape(256, 256)
    path = write(tmp_path / "all.png", png([row.tobytes() for row in everything], width=256, bits=16))
    np.testing.assert_array_equal(image_files.load_image(path, 256, 1)[..., 0], np.round(np.float64(everything) / 257))


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_of_either_byte_order(tmp_path, order):
    path = write(tmp_path / "ramp.tiff", tiff(np.arange(8).reshape(2, 4) * 36 * 257, 16, order=order))
    np.testing.assert_array_equal(image_files.read_rgba(path)[..., 0], np.arange(8).reshape(2, 4) * 36)


def tiff(values, bits, *, order="<", photometric=1, extra=()):
    """An uncompressed grey TIFF by its specification."""
    height, width = values.shape
    if bits == 12:
        flat = values.reshape(-1, 2)
        packed = np.stack([flat[:, 0] >> 4, (flat[:, 0] & 15) << 4 | flat[:, 1] >> 8, flat[:, 1] & 255], 1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = values.astype(f"{order}u{bits // 8}").tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags = sorted([*tags, (278, height), (279, len(data)), *extra])
    directory = struct.pack(f"{order}H", len(tags))
    directory += b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data)) + data + directory


def test_12_bit_tiff_is_scaled_to_8_bits(tmp_path):
    path = write(tmp_path / "ramp.tiff", tiff(np.arange(8).reshape(2, 4) * 585, 12))
    np.testing.assert_array_equal(
        image_files.read_rgba(path)[..., 0], np.round(np.arange(8) * 585 * 255 / 4095).reshape(2, 4)
    )


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_whose_zero_is_white(tmp_path, bits):
    values = np.arange(8).reshape(2, 4) * 36
    path = write(tmp_path / "ramp.tiff", tiff(values * (257 if bits == 16 else 1), bits, photometric=0))
    np.testing.assert_array_equal(image_files.read_rgba(path)[..., 0], 255 - values)


def test_floating_point_is_scaled_from_0_to_1(tmp_path):
    ramp = np.tile(np.arange(8) * 36 / 255, (8, 1)).astype(np.float32)
    path = save(tmp_path / "ramp.tiff", ramp)
    np.testing.assert_array_equal(image_files.load_image(path, 8, 1)[..., 0], np.tile(np.arange(8) * 36, (8, 1)))


@pytest.mark.parametrize("value", [-0.1, 1.5, 255, np.nan, np.inf])
def test_floating_point_of_another_range_raises(tmp_path, value):
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = value
    assert "scale them to [0, 1]" in refused(save(tmp_path / "a.tiff", values))


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_integers_outside_16_bits_raise(tmp_path, value):
    assert "scale them to [0, 65535]" in refused(save(tmp_path / "a.tiff", np.full((4, 4), value, np.int32)))


def test_grey_is_luma_of_bt_601(tmp_path):
    path = save(tmp_path / "a.png", COLOURS)
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(image_files.load_image(path, 8, 1)[..., 0] - luma).max() <= 0.51
    np.testing.assert_array_equal(image_files.load_image(path, 8, 3), COLOURS)


# --- modes ---


def test_transparency_is_composited_on_white(tmp_path):
    alpha = RNG.integers(0, 256, (8, 8, 1), np.uint8)
    path = save(tmp_path / "a.png", np.concatenate([COLOURS, alpha], -1))
    expected = COLOURS * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(image_files.load_image(path, 8, 3) - expected).max() <= 0.51
    loaded = image_files.load_image(path, 8, 4)
    np.testing.assert_array_equal(loaded[..., 3:], alpha)
    np.testing.assert_array_equal(loaded[..., :3], np.where(alpha > 0, COLOURS, 0))


def test_hidden_colour_is_white(tmp_path):
    hidden = np.zeros((8, 8, 4), np.uint8)
    hidden[..., 0] = 255
    path = save(tmp_path / "red.png", hidden)
    for size in (4, 8, 16):
        assert (image_files.load_image(path, size, 3) == 255).all() and (
            image_files.load_image(path, size, 1) == 255
        ).all()
        assert (image_files.load_image(path, size, 4) == 0).all()


def test_grey_with_alpha(tmp_path):
    pixels = np.zeros((8, 8, 2), np.uint8)
    pixels[:, :4, 1] = 255
    Image.merge("LA", [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in (0, 1)]).save(tmp_path / "a.png")
    expected = np.where(np.arange(8) < 4, 0, 255)[None].repeat(8, 0)
    np.testing.assert_array_equal(image_files.load_image(tmp_path / "a.png", 8, 1)[..., 0], expected)


def test_palette_with_transparency(tmp_path):
    palette = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)
    chunks = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", bytes([255, 0]))
    rows = [bytes([0, 0, 1, 1])] * 4
    path = write(tmp_path / "a.png", png(rows, width=4, colour_type=PALETTE, before=chunks))
    expected = np.broadcast_to(np.array([palette[0]] * 2 + [[255] * 3] * 2), (4, 4, 3))
    np.testing.assert_array_equal(image_files.load_image(path, 4, 3), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_one_transparent_grey_level(tmp_path, bits):
    """The chunk tRNS of a grey PNG names the level that is transparent."""
    levels = np.array([0, 100, 200, 100]) * (257 if bits == 16 else 1)
    row = levels.astype(f">u{bits // 8}").tobytes()
    transparent = chunk(b"tRNS", struct.pack(">H", levels[1]))
    path = write(tmp_path / "a.png", png([row] * 4, width=4, bits=bits, before=transparent))
    np.testing.assert_array_equal(image_files.load_image(path, 4, 1)[0, :, 0], [0, 255, 200, 255])


def test_one_bit(tmp_path):
    path = write(tmp_path / "a.png", png([bytes([0b10010000])] * 4, width=4, bits=1))
    np.testing.assert_array_equal(image_files.load_image(path, 4, 1)[0, :, 0], [255, 0, 0, 255])


def test_cmyk(tmp_path):
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:, :4, 0] = 255  # cyan, then black
    inks[:, 4:, 3] = 255
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tiff")
    found = image_files.load_image(tmp_path / "a.tiff", 8, 3)
    assert (found[:, :4] == [0, 255, 255]).all() and (found[:, 4:] == 0).all()


def test_the_first_frame_of_an_animation_is_read(tmp_path, capsys):
    frames = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in (200, 10)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert (image_files.load_image(tmp_path / name, 4, 1) == 200).all()
        assert capsys.readouterr().err == f"{tmp_path / name} has several frames: using the first\n"


# --- geometry ---


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff", "a.webp"])
@pytest.mark.parametrize(
    "orientation, upright",
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.T),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).T),
        (8, np.rot90),
    ],
)
def test_exif_orientation(tmp_path, name, orientation, upright):
    stored = np.zeros((16, 32), np.uint8)
    stored[:8, :8] = 255  # one corner, and sides that differ
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / name, stored, exif=exif)
    np.testing.assert_array_equal(image_files.read_rgba(path)[..., 0] > 127, upright(stored) > 127)


def test_exif_orientation_of_16_bits(tmp_path):
    exif = b"Exif\0\0"[6:] + b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 274, 3, 1, 6, 0) + bytes(4)
    rows = [np.array([0, 65535], ">u2").tobytes()]
    path = write(tmp_path / "a.png", png(rows, width=2, bits=16, before=chunk(b"eXIf", exif)))
    np.testing.assert_array_equal(image_files.read_rgba(path)[..., 0], [[0], [255]])


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (9, 8), (8, 11)])
@pytest.mark.parametrize("size", [2, 8])
def test_the_central_square_is_used_and_reported(tmp_path, shape, size, capsys):
    pixels = RNG.integers(0, 256, shape, np.uint8)
    path = save(tmp_path / "a.png", pixels)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    square = pixels[top : top + 8, left : left + 8].astype(float)
    expected = square.reshape(size, 8 // size, size, 8 // size).mean((1, 3))
    assert np.abs(image_files.load_image(path, size, 1)[..., 0] - expected).max() <= 0.5 + 1e-6
    assert capsys.readouterr().err == f"{path} has {shape[1]}x{shape[0]} pixels: using the central 8x8\n"


def test_a_square_image_is_read_silently_and_unchanged(tmp_path, capsys):
    path = save(tmp_path / "a.png", COLOURS)
    np.testing.assert_array_equal(image_files.load_image(path, 8, 3), COLOURS)
    assert capsys.readouterr().err == ""


def test_resize_requires_a_square():
    with pytest.raises(ValueError, match="32x8"):
        image_files.resize(np.zeros((8, 32, 3), np.uint8), 8)


# --- masks ---


def test_a_mask_is_white_where_half_of_the_area_is(tmp_path):
    """Every number of white pixels in areas of 2 x 2, and grey levels next to the middle."""
    areas = np.array([[(count > np.arange(4)) * 255 for count in range(5)]] * 5, np.uint8)
    pixels = areas.reshape(5, 5, 2, 2).transpose(0, 2, 1, 3).reshape(10, 10)
    mask = image_files.load_mask(save(tmp_path / "a.png", pixels), 5)
    assert mask.dtype == bool and mask.tolist() == [[False, False, True, True, True]] * 5
    levels = np.array([[127, 128], [0, 255]], np.uint8)
    assert image_files.load_mask(save(tmp_path / "b.png", levels), 2).tolist() == [[False, True], [False, True]]


def test_a_mask_is_enlarged_by_the_nearest_neighbour(tmp_path):
    checks = (np.indices((4, 4)).sum(0) % 2 * 255).astype(np.uint8)
    mask = image_files.load_mask(save(tmp_path / "a.png", checks), 12)
    np.testing.assert_array_equal(mask, checks.repeat(3, 0).repeat(3, 1) > 0)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_mask_is_cropped_as_its_image(tmp_path, scale):
    shown = np.zeros((8, 20), np.uint8)
    shown[2:5, 7:11] = 255
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    save(image, shown), save(mask, shown.repeat(scale, 0).repeat(scale, 1))
    np.testing.assert_array_equal(image_files.load_mask(mask, 8), image_files.load_image(image, 8, 1)[..., 0] > 0)


def test_transparent_parts_of_a_mask_are_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    mask = image_files.load_mask(save(tmp_path / "a.png", pixels), 4)
    np.testing.assert_array_equal(mask, np.arange(4)[:, None].repeat(4, 1) >= 2)


# --- the same pixels as the data set ---


def test_an_emoji_is_read_as_its_data_set_prepares_it(packages):
    from diffjax.data.image_files import on_white

    for entry in [entry for entry in emoji.read_entries(packages) if entry.style == "google"][:4]:
        for size in (32, 64):
            prepared = emoji.load_image(entry.path, size)
            np.testing.assert_array_equal(image_files.load_image(entry.path, size, 4), prepared)
            found = image_files.load_image(entry.path, size, 3)
            np.testing.assert_array_equal(found, on_white(prepared))
            assert (found[0, 0] == 255).all()  # a corner, black where alpha is ignored


# --- invalid files ---

WHOLE = png([row.tobytes() for row in COLOURS], width=8, colour_type=RGB)


def changed(content, place):
    content = bytearray(content)
    content[place] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a photo of a cat",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nquit\n",  # Pillow would run Ghostscript
        WHOLE[: len(WHOLE) // 2],
        WHOLE[:-6],
        changed(WHOLE, len(WHOLE) // 2),
        png([], width=0, height=8),
        png([], width=8, height=8, data=zlib.compress(RNG.bytes(72))[:40]),  # checksums hold, rows are missing
        b"P5 0 0 255\n",
        b"BM" + bytes(50),
    ],
)
def test_damaged_files_raise_one_line(tmp_path, content):
    path = write(tmp_path / "victim.png", content)
    for function in (
        image_files.read_rgba,
        lambda p: image_files.load_image(p, 8, 3),
        lambda p: image_files.load_mask(p, 8),
    ):
        refused(path, function)


def test_files_that_cannot_be_opened_raise(tmp_path):
    assert "No such file" in refused(tmp_path / "none.png")
    assert "directory" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "Not a regular file" in refused(tmp_path / "pipe.png")


@given(place=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_of_a_png_raises_or_has_no_effect(tmp_path_factory, place, bit):
    path = tmp_path_factory.getbasetemp() / "flipped.png"
    content = bytearray(WHOLE)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    try:
        found = image_files.load_image(path, 8, 3)
    except UserError as error:
        assert "flipped.png" in str(error) and "\n" not in str(error)
    else:
        np.testing.assert_array_equal(found, COLOURS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small files of every format."""
    found = {}
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(COLOURS).save(buffer, kind)
        found[kind] = buffer.getvalue()
    return found


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_raise_or_give_pixels(tmp_path_factory, files, data):
    """Any bytes raise only UserError and do not hang. Formats without checksums may give other pixels."""
    kind = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[kind])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 2 * len(content)))
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(content[:cut])
    try:
        found = image_files.load_image(path, 8, 3)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert found.shape == (8, 8, 3) and found.dtype == np.uint8


# --- bombs ---


def bomb(kind):
    """Returns a small file that declares, or expands to, large data."""
    side = 30_000
    if kind == "pixels":  # 112 MB of one bit, 3.6 GB as RGBA
        packer = zlib.compressobj(9)
        row = bytes(1 + side // 8)
        data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
        return png([], width=side, height=side, bits=1, data=data)
    if kind == "declared":
        return png([], width=2**31 - 1, height=2**31 - 1, data=zlib.compress(bytes(100)))
    if kind == "tile":
        tiles = [(322, 60_000), (323, 60_000), (324, 8), (325, 4)]
        return tiff(np.zeros((2, 4), int), 8, extra=tiles)
    if kind == "text":
        text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(2**28), 9))
        return png([bytes(8)] * 8, width=8, before=text)
    profile = chunk(b"iCCP", b"key\0\0" + zlib.compress(bytes(2**28), 9))
    return png([bytes(8)] * 8, width=8, before=profile)


@pytest.mark.slow
def test_decompression_bombs_raise_in_bounded_memory(tmp_path):
    kinds = ("declared", "tile", "text", "profile", "pixels")
    paths = [write(tmp_path / kind, bomb(kind)) for kind in kinds]
    assert all(path.stat().st_size < 500_000 for path in paths)
    code = (
        "import resource, sys; from diffjax.data import image_files; from diffjax.errors import UserError\n"
        "for path in sys.argv[1:]:\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    try: message = f'{path} read' if image_files.read_rgba(path) is not None else ''\n"
        "    except UserError as error: message = error\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, message)"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    for kind, path, line in zip(kinds, paths, process.stdout.splitlines(), strict=True):
        kibibytes, message = line.split(" ", 1)
        assert str(path) in message and int(kibibytes) < 100_000 and not message.endswith(" read"), line
        if kind in ("pixels", "declared"):
            assert "larger than 67,108,864 pixels" in message
