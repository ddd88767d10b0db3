"""Grids of images: separators, labels, enlargement, and the way back from a grid to its images."""

import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffjax.errors import UserError
from diffjax.inference import image_grids
from diffjax.inference.image_grids import BACKGROUND, Layout

LABELS = Layout(3, ["a small red circle", "three blue squares"], ["0", "0.5", "1"], "interpolated")


def images(count=5, size=8, channels=3, width=None):
    return np.random.default_rng(0).integers(0, 256, (count, size, width or size, channels), np.uint8)


def outside(grid):
    """Returns the pixels of a grid that belong to no image."""
    mask = np.ones(grid.pixels.shape[:2], bool)
    for i in range(grid.geometry.count):
        mask[grid.geometry.box(i)] = False
    return grid.pixels[mask]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("value", [0, 255])
def test_black_white_and_transparent_images_have_grey_borders(channels, value):
    grid = image_grids.grid(np.full((5, 8, 8, channels), value, np.uint8))
    assert (outside(grid)[:, :3] == BACKGROUND).all() and (outside(grid)[:, 3:] == 255).all()
    assert 0 < BACKGROUND < 255
    for i in range(5):
        rows, columns = grid.geometry.box(i)
        for pixels in (
            grid.pixels[rows.start - 1, columns],
            grid.pixels[rows.stop, columns],
            grid.pixels[rows, columns.start - 1],
            grid.pixels[rows, columns.stop],
        ):
            assert (pixels[..., :3] == BACKGROUND).all()


@pytest.mark.parametrize("layout", [image_grids.SQUARE, LABELS, Layout(title="x" * 3000), Layout(1)])
@pytest.mark.parametrize("shape", [(1, 3, 1), (8, 8, 3), (30, 12, 4), (64, 64, 3), (70, 70, 1)])
def test_images_are_read_back_from_a_grid(layout, shape, tmp_path):
    height, width, channels = shape
    original = images(5, height, channels, width)
    grid = image_grids.grid(original, layout)
    np.testing.assert_array_equal(grid.images, original)
    image_grids.save(tmp_path / "grid.png", grid, {"seed": 3})
    np.testing.assert_array_equal(image_grids.read_images(tmp_path / "grid.png"), original)
    assert image_grids.read_settings(tmp_path / "grid.png") == {"seed": 3}


@pytest.mark.parametrize(("size", "scale"), [(8, 8), (28, 2), (32, 2), (33, 1), (64, 1), (100, 1)])
def test_small_images_are_enlarged_by_a_whole_factor(size, scale):
    grid = image_grids.grid(images(size=size))
    assert grid.geometry.scale == scale
    enlarged = np.asarray(Image.fromarray(images(size=size)[0]).resize((size * scale,) * 2, Image.Resampling.NEAREST))
    np.testing.assert_array_equal(grid.pixels[grid.geometry.box(0)], enlarged)


def test_labels_are_beside_rows_and_above_columns():
    grid, geometry = image_grids.grid(images(), LABELS), image_grids.grid(images(), LABELS).geometry
    plain = image_grids.grid(images(), Layout(3))
    assert (plain.geometry.columns, geometry.columns) == (3, 3)
    dark = (grid.pixels < BACKGROUND - 50).any(axis=-1)
    for i in (0, 3):  # the first image of each row
        rows, _ = geometry.box(i)
        assert dark[rows, : geometry.left].any()
    for i in range(3):
        _, columns = geometry.box(i)
        assert dark[: geometry.top, columns].any()
    assert dark[:14, :40].any()  # the title
    assert not (outside(plain) < BACKGROUND).any()


def test_labels_stay_in_their_places():
    """Long labels are cut, and do not reach other rows, columns or images."""
    word = "Donaudampfschifffahrt " * 40
    original = images(4)
    grid = image_grids.grid(original, Layout(2, [word, word], [word, word], word))
    np.testing.assert_array_equal(grid.images, original)
    geometry = grid.geometry
    assert geometry.left < 230 and geometry.top < 140
    between = slice(geometry.box(0)[0].stop, geometry.box(2)[0].start)
    assert (grid.pixels[between, geometry.left :] == BACKGROUND).all()


def test_labels_are_printable():
    with_escape = image_grids.grid(images(1), Layout(title="red\n\x1b[2Jblue ü ж λ"))
    written_out = image_grids.grid(images(1), Layout(title=r"red \x1b[2Jblue ü ж λ"))
    np.testing.assert_array_equal(with_escape.pixels, written_out.pixels)


@pytest.mark.parametrize("layout", [Layout(3, ["one"]), Layout(3, (), ["0", "1"])])
def test_a_label_is_missing(layout):
    with pytest.raises(ValueError, match="labels for"):
        image_grids.grid(images(), layout)


def test_each_class_has_a_column():
    assert image_grids.class_layout(3, 9, ("cat", "dog", "owl")) == Layout(3, column_labels=["cat", "dog", "owl"])
    assert image_grids.class_layout(3, 100, ("cat", "dog", "owl")) == Layout(9, column_labels=["cat", "dog", "owl"] * 3)
    assert image_grids.class_layout(2, 2).column_labels == ["class 0", "class 1"]
    assert image_grids.class_layout(2, 2, ("cat",)).column_labels == ["class 0", "class 1"]
    for classes, count in ((0, 9), (1, 9), (10, 9), (21, 100)):
        assert image_grids.class_layout(classes, count) == image_grids.SQUARE


def test_rgb_of_grey_and_transparent_images():
    grey = images(2, channels=1)
    np.testing.assert_array_equal(image_grids.to_rgb(grey), np.repeat(grey, 3, axis=-1))
    rgba = np.zeros((1, 1, 3, 4), np.uint8)
    rgba[0, 0, :, 3] = 0, 255, 51  # transparent, opaque, and a fifth of black
    np.testing.assert_array_equal(image_grids.to_rgb(rgba)[0, 0, :, 0], [255, 0, 204])


GEOMETRY = {
    "count": 5, "columns": 3, "height": 8, "width": 8, "scale": 8,
    "top": 2, "left": 2, "row_step": 66, "column_step": 66,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{"count": 10**9}, {"count": 0}, {"columns": -1}, {"width": 8.0}, {"row_step": 1}, {"left": 100}, {"scale": 9}],
)
def test_damaged_geometry_is_refused(changes, tmp_path):
    path, chunks = tmp_path / "grid.png", PngImagePlugin.PngInfo()
    pixels = Image.fromarray(image_grids.grid(images(), Layout(3)).pixels)
    for value, message in (
        (GEOMETRY | changes, "are damaged"),
        ([1], "is not a grid"),
        ({"count": 1}, "is not a grid"),
    ):
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("diffjax_grid", json.dumps(value))
        pixels.save(path, pnginfo=chunks)
        with pytest.raises(UserError, match=message):
            image_grids.read_images(path)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("diffjax_grid", json.dumps(GEOMETRY))
    pixels.save(path, pnginfo=chunks)
    np.testing.assert_array_equal(image_grids.read_images(path), images())


def test_an_image_that_is_no_grid_is_refused(tmp_path):
    image_grids.save(tmp_path / "image.png", images()[0])
    (tmp_path / "text.png").write_text("text")
    for name, message in (("image.png", "is not a grid"), ("text.png", "cannot be|can be read"), ("none.png", "read")):
        with pytest.raises(UserError, match=message):
            image_grids.read_images(tmp_path / name)
