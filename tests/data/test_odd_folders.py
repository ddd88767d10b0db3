"""Folders that are unusual and valid: encodings of metadata, names of files, small and animated images, links."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.data.examples import ImageOptions
from tests.image_folders import png, write

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


def contents(root, size=8):
    """{number of an image of IMAGES: (label, caption)} of a folder."""
    source = data.open_dataset("folder", directory=str(root), split="train", options=ImageOptions(size))
    numbers = {image.tobytes(): i for i, image in enumerate(IMAGES)}
    return {numbers[e["image"].tobytes()]: (int(e["label"]), e.get("caption")) for e in source}


CSV = 'file_name,text\n0.png,a cat\n1.png,"red, and blue"\n'
JSONL = "\n".join(
    json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(("a cat", "red, and blue"))
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", CSV),
        ("metadata.csv", "\ufeff" + CSV),
        ("metadata.csv", CSV.replace("\n", "\r\n")),
        ("metadata.csv", CSV.replace("\n", "\r")),
        ("metadata.csv", CSV.replace("\n", "\n\n")),
        ("metadata.csv", CSV.replace(",", ", ").replace("red, ", "red,")),
        ("metadata.jsonl", JSONL),
        ("metadata.jsonl", "\ufeff" + JSONL.replace("\n", "\r\n\r\n")),
    ],
)
def test_forms_of_metadata(name, text, tmp_path):
    for i in range(2):
        write(tmp_path / f"{i}.png", png(IMAGES[i]))
    write(tmp_path / name, text)
    assert contents(tmp_path) == {0: (0, "a cat"), 1: (0, "red, and blue")}


def test_metadata_may_name_images_in_other_folders_of_the_set(tmp_path):
    write(tmp_path / "images" / "0.png", png(IMAGES[0]))
    write(tmp_path / "text" / "metadata.csv", "file_name,text\n../images/./0.png,a cat\n")
    assert contents(tmp_path) == {0: (0, "a cat")}


def test_labels_may_be_whole_numbers_in_floating_point(tmp_path):
    rows = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate((1.0, 0.0, 2))]
    for i in range(3):
        write(tmp_path / f"{i}.png", png(IMAGES[i]))
    write(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    assert {i: label for i, (label, _) in contents(tmp_path).items()} == {0: 1, 1: 0, 2: 2}


@pytest.mark.parametrize("name", ["a b.png", "été 雪.PNG", "x'\"$(y);.png", "two\nlines.png", " .png", "\udcff.png"])
def test_names_of_files(name, tmp_path):
    write(tmp_path / os.fsencode(name).decode(errors="surrogateescape"), png(IMAGES[0]))
    assert contents(tmp_path) == {0: (0, None)}


def test_a_class_may_have_one_image(tmp_path):
    for i, name in enumerate(("cat/0.png", "bee/1.png", "cat/2.png")):
        write(tmp_path / name, png(IMAGES[i]))
    assert contents(tmp_path) == {0: (1, None), 1: (0, None), 2: (1, None)}


def test_classes_may_be_links_to_other_folders(tmp_path):
    for i, name in enumerate(("ant", "bee")):
        write(tmp_path / "elsewhere" / name / "0.png", png(IMAGES[i]))
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert contents(tmp_path / "set") == {0: (0, None), 1: (1, None)}


def test_a_folder_is_not_an_image(tmp_path):
    write(tmp_path / "0.png", png(IMAGES[0]))
    (tmp_path / "1.png").mkdir()
    assert contents(tmp_path) == {0: (0, None)}


def test_one_pixel_fills_the_image(tmp_path):
    write(tmp_path / "0.png", png(IMAGES[0][:1, :1]))
    source = data.open_dataset("folder", directory=str(tmp_path), split="train", options=ImageOptions(8))
    assert (source[0]["image"] == IMAGES[0][0, 0]).all()


@pytest.mark.parametrize(("suffix", "options"), [("webp", {"lossless": True}), ("gif", {})])
def test_the_first_frame_of_an_animation_is_read(suffix, options, tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (0, 255)]
    frames[1].save(tmp_path / f"0.{suffix}", save_all=True, append_images=[frames[0]], **options)
    source = data.open_dataset("folder", directory=str(tmp_path), split="train", options=ImageOptions(8))
    assert (source[0]["image"] == 255).all()
