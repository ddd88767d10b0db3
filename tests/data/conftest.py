"""Small data sets on disk, in the layout that the real ones have."""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def real():
    """The folder of real data that DIFFJAX_DATA names: `tfds/` prepared sets, `emoji/` npm packages."""
    if "DIFFJAX_DATA" not in os.environ:
        pytest.skip("DIFFJAX_DATA does not name a folder of real data")
    return pathlib.Path(os.environ["DIFFJAX_DATA"])


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """(data_dir, {split: (images, labels)}): a cifar10 of 40 + 10 random images, prepared as array_record."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    arrays = {
        split: (rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n))
        for split, n in (("train", 40), ("test", 10))
    }

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.2")
        pkg_dir_path = pathlib.Path(__file__).parent

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in arrays}

        def _generate_examples(self, split):
            for i, (image, label) in enumerate(zip(*arrays[split], strict=True)):
                yield i, {"image": Image.fromarray(image), "label": int(label)}

    directory = tmp_path_factory.mktemp("prepared")
    Cifar10(data_dir=directory).download_and_prepare(file_format="array_record")
    return directory, arrays


# code points as the packages write them, group, name, whether it has skin tones
EMOJI = [
    ("1F385", "People & Body", "Santa Claus", True),
    ("2764-FE0F", "Smileys & Emotion", "red heart", False),
    ("0023-FE0F-20E3", "Symbols", "keycap: #", False),
    *((f"1F4{i:02X}", "Animals & Nature", f"animal {i}", i % 2 == 0) for i in range(40)),
]
TONES = {"1F3FB": "light skin tone", "1F3FF": "dark skin tone"}


def emoji_picture(rng, side, height=None):
    """A coloured disc on transparent black."""
    height = height or side
    y, x = np.mgrid[:height, :side]
    disc = np.hypot(x - side / 2 + 0.5, y - height / 2 + 0.5) < side * 0.4
    pixels = np.zeros((height, side, 4), np.uint8)
    pixels[disc] = (*rng.integers(30, 256, 3), 255)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """A folder where the four npm packages were installed, tiny."""
    rng = np.random.default_rng(1)
    root = tmp_path_factory.mktemp("npm")
    modules = root / "node_modules"
    google, fluent = modules / "emoji-datasource-google", modules / "@lobehub" / "fluent-emoji-3d"
    (google / "img/google/64").mkdir(parents=True)
    (fluent / "assets").mkdir(parents=True)
    listing, names, derived = [], {}, {}
    for order, (unified, group, name, toned) in enumerate(EMOJI):

        def add(unified, name, table):
            image = f"{unified.lower()}.png"
            emoji_picture(rng, 64).save(google / "img/google/64" / image)
            stem = unified.lower().lstrip("0") if "20E3" in unified else unified.lower()
            emoji_picture(rng, 256, 264 if "1F4" in unified else 256).save(
                fluent / "assets" / f"{stem}.webp", lossless=True
            )
            text = "".join(chr(int(code, 16)) for code in unified.split("-")).replace("\ufe0f", "")
            table[text] = {"tts": [name], "default": [name, "word"]}
            return {"unified": unified, "image": image, "added_in": "1.0"}

        emoji = add(unified, name, names) | {"category": group, "sort_order": order}
        if toned:
            emoji["skin_variations"] = {
                tone: add(f"{unified}-{tone}", f"{name}: {words}", derived) for tone, words in TONES.items()
            }
        listing.append(emoji)
    copy = dict(listing[1], unified="2765", image="2765.png", sort_order=99)  # the heart's image under another name
    (google / "img/google/64/2765.png").write_bytes((google / "img/google/64" / listing[1]["image"]).read_bytes())
    names["\u2765"] = {"tts": ["copied heart"], "default": []}
    nameless = dict(listing[1], unified="1FFFF", sort_order=100)
    (google / "emoji.json").write_text(json.dumps([copy, *listing, nameless]))
    for package, folder, key, table in (
        ("cldr-annotations-full", "annotations", "annotations", names),
        ("cldr-annotations-derived-full", "annotationsDerived", "annotationsDerived", derived),
    ):
        path = modules / package / folder / "en" / "annotations.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({key: {"annotations": table}}))
    return root
