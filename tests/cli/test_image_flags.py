"""Images and masks of `--image` and `--mask`, in the range of models."""

import types

import numpy as np
import pytest
from PIL import Image

from diffjax.errors import UserError
from diffjax.inference import edits
from diffjax.typing import ImageSpec


def run(channels):
    return types.SimpleNamespace(spec=ImageSpec(8, channels, 10))


@pytest.fixture
def file(tmp_path):
    """16 x 12 pixels of RGBA; the outer columns are red, and transparent red is on the left of the central square."""
    pixels = np.full((12, 16, 4), 255, np.uint8)
    pixels[..., 1:3] = 0
    pixels[:, 2:14, :3] = 51
    pixels[:, 2:8] = (255, 0, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_cropped_and_composited_on_white(file, channels, capsys):
    image = edits.load_image(str(file), run(channels))
    assert image.shape == (8, 8, channels)
    np.testing.assert_allclose(image[:, :4], 1, atol=1e-6)
    np.testing.assert_allclose(image[:, 4:], 51 / 127.5 - 1, atol=1e-6)
    assert capsys.readouterr().err == f"{file} has 16x12 pixels: using the central 12x12\n"


def test_an_image_of_a_transparent_run_keeps_alpha(file):
    image = edits.load_image(str(file), run(4))
    np.testing.assert_allclose(image[:, :4], -1, atol=1e-6)
    np.testing.assert_allclose(image[:, 4:, 3], 1, atol=1e-6)


def test_a_mask_has_the_crop_of_its_image(file, tmp_path):
    white = np.zeros((24, 32), np.uint8)
    white[:, 4:16] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    image = edits.load_mask(str(tmp_path / "mask.png"), run(3).spec)
    assert image.shape == (8, 8, 3) and image.dtype == np.float32
    np.testing.assert_array_equal(image[..., 0], np.tile(np.arange(8) < 4, (8, 1)))


def test_a_named_region_is_a_mask():
    image = edits.load_mask("right", run(3).spec)
    np.testing.assert_array_equal(image, np.broadcast_to((np.arange(8) >= 4)[:, None], (8, 8, 3)))


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    for read in (lambda path: edits.load_image(path, run(3)), lambda path: edits.load_mask(path, run(3).spec)):
        for name in ("a.png", "none.png"):
            with pytest.raises(UserError, match=name):
                read(str(tmp_path / name))
