"""The emoji builder on tiny packages with the layout of the real ones, and its index on the real ones."""

import collections
import shutil

import numpy as np
import pytest

from diffjax import data
from diffjax.data import emoji, prepare
from diffjax.errors import UserError


@pytest.fixture(scope="module")
def prepared(packages, tmp_path_factory):
    directory = tmp_path_factory.mktemp("emoji")
    for size in (32, 64):
        assert (
            prepare.main(["emoji", f"--manual_dir={packages}", f"--data_dir={directory}", f"--image_size={size}"]) == 0
        )
    return directory


def records(directory, split):
    """Records on disk, read by tensorflow-datasets itself."""
    import tensorflow_datasets as tfds

    return list(tfds.builder_from_directory(directory / "emoji/64/1.0.0").as_data_source(split=split))


def check_splits(found):
    """Checks that no base emoji is in both splits, a tenth is in test, and captions are unique."""
    bases = collections.defaultdict(set)
    for entry in found:
        bases[entry.base].add(entry.split)
    assert all(len(splits) == 1 for splits in bases.values())
    assert len({entry.caption for entry in found}) == len(found)
    return np.mean([splits == {"test"} for splits in bases.values()])


def test_join_and_splits(packages):
    found = emoji.read_entries(packages)
    # In both styles, 43 emoji and two skin tones of 21 of them; and the copied heart in one.
    assert len(found) == 2 * (43 + 2 * 21) + 1
    assert 0 < check_splits(found) < 0.3
    by_caption = {entry.caption: entry for entry in found}
    assert by_caption["keycap: #, fluent 3d style"].path.name == "23-fe0f-20e3.webp"  # zeros are not written there
    variant = by_caption["Santa Claus: dark skin tone, google style"]
    assert (variant.key, variant.base, variant.group) == ("1f385-1f3ff", "1f385", "People & Body")
    assert variant.keywords == ("Santa Claus: dark skin tone", "word")


def test_packages_are_found_in_the_folder_itself(packages):
    assert len(emoji.read_entries(packages / "node_modules")) == len(emoji.read_entries(packages))


def test_prepared_records(prepared, packages):
    train, test = records(prepared, "train"), records(prepared, "test")
    distinct = {(entry.base, entry.caption) for entry in emoji.read_entries(packages)}
    distinct.discard(("2765", "copied heart, google style"))  # its image is the red heart's
    assert {(r["base"].decode(), r["caption"].decode()) for r in train + test} == distinct
    assert len(train) + len(test) == len(distinct)
    assert not {r["base"] for r in train} & {r["base"] for r in test}
    assert not {r["image"].tobytes() for r in train} & {r["image"].tobytes() for r in test}
    record = next(r for r in train + test if r["caption"] == b"keycap: #, google style")
    assert record["image"].shape == (64, 64, 4) and record["name"] == b"keycap: #"
    assert list(record["keywords"]) == [b"keycap: #", b"word"]
    assert data.class_names("emoji")[record["group"]] == "Symbols" and emoji.STYLES[record["style"]] == "google"


def test_source_on_white_and_transparent(prepared):
    sources = [
        data.open_dataset("emoji", directory=prepared, split="train", image_size=size, background=background)
        for size, background in ((64, "white"), (64, "transparent"), (32, "white"), (48, "transparent"))
    ]
    white, clear, small, resized = (source[3] for source in sources)
    assert [e["image"].shape for e in (white, clear, small, resized)] == [
        (64, 64, 3),
        (64, 64, 4),
        (32, 32, 3),
        (48, 48, 4),
    ]
    assert white["caption"] == clear["caption"] and isinstance(white["caption"], str)
    assert white["label"].dtype == np.int32
    rgb, alpha = clear["image"][..., :3].astype(int), clear["image"][..., 3:] / 255
    np.testing.assert_allclose(white["image"], rgb * alpha + 255 * (1 - alpha), atol=0.51)
    assert (white["image"][0, 0] == 255).all() and (clear["image"][0, 0] == 0).all()


def test_edges_do_not_darken(packages):
    """A disc of one colour keeps its colour in all visible pixels, at any size."""
    entry = next(e for e in emoji.read_entries(packages) if e.style == "fluent 3d" and e.path.stem.startswith("1f4"))
    pixels = emoji.load_image(entry.path, 32).astype(int)
    shown = pixels[pixels[..., 3] > 40]
    assert np.ptp(shown[:, :3], axis=0).max() <= 6  # rounding at low alpha
    assert len({*shown[:, 3]}) > 5  # and the edge is anti-aliased
    rows, columns = np.nonzero(pixels[..., 3] > 127)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1  # 256 x 264 was padded and not squeezed


@pytest.mark.parametrize("missing", ["emoji-datasource-google", "cldr-annotations-derived-full"])
def test_a_missing_package_is_reported(missing, packages, tmp_path):
    for package in (packages / "node_modules").iterdir():
        if package.name != missing:
            (tmp_path / package.name).symlink_to(package)
    with pytest.raises(
        UserError, match=f"has no npm package {missing}; run `npm install emoji-datasource-google@16.0.0 @lobehub"
    ):
        emoji.prepare(str(tmp_path), str(tmp_path), 32)


@pytest.mark.parametrize(
    "file", ["emoji-datasource-google/emoji.json", "cldr-annotations-full/annotations/en/annotations.json"]
)
@pytest.mark.parametrize("content", [b"", b"7", b"{}", b"[1]", b'[{"unified": 3}]', b"\xff", b"[" * 100_000, None])
def test_a_damaged_package_is_reported(packages, tmp_path, file, content):
    victim = shutil.copytree(packages, tmp_path / "copy") / "node_modules" / file
    victim.unlink() if content is None else victim.write_bytes(content)
    with pytest.raises(UserError, match=rf"{victim} .*run `npm install emoji-datasource-google@") as error:
        emoji.read_entries(tmp_path / "copy")
    assert str(error.value).isprintable()


def test_a_damaged_image_is_reported(packages, tmp_path):
    found = emoji.read_entries(shutil.copytree(packages, tmp_path / "copy"))
    found[0].path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"{found[0].path}: cannot be read as an image"):
        list(emoji.drop_duplicates(found, 32))


def test_real_packages(real):
    found = emoji.read_entries(real / "emoji")
    assert collections.Counter(entry.style for entry in found) == {"google": 3786, "fluent 3d": 3375}
    assert 0.07 < check_splits(found) < 0.13
    assert {entry.group for entry in found} == set(data.class_names("emoji"))
    assert len({entry.base for entry in found}) == 1911
