"""Image sets on disk: each layout and file format against the arrays that it was written from."""

import csv
import io
import json
import pathlib
import re
import tarfile

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from diffjax import data
from diffjax.data import image_files, records, sources
from diffjax.data.examples import ImageOptions
from diffjax.errors import MissingData, UserError
from tests import tiny

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
LABELS = np.arange(12) % 3
NAMES = ("ant", "bee", "cat")


def png(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def opened(name, directory="", split="train", image_size=8, **options):
    return data.open_dataset(name, directory=str(directory), split=split, options=ImageOptions(image_size, **options))


def info(name, directory="", **options):
    return data.dataset_info(name, directory=str(directory), split="train", options=ImageOptions(8, **options))


def contents(source):
    """{bytes of an image: (label, caption)} of all examples."""
    return {e["image"].tobytes(): (int(e["label"]), e.get("caption")) for e in source.__getitems__(range(len(source)))}


def expected(labels=LABELS, captions=(None,) * 12, indices=range(12)):
    return {IMAGES[i].tobytes(): (int(labels[i]), captions[i]) for i in indices}


CAPTIONS = tuple(f"number {i}, a {NAMES[i % 3]}" for i in range(12))
NONE = np.zeros(12, int)


def write_classes(root, indices=range(12)):
    for i in indices:
        write(root / NAMES[LABELS[i]] / f"{i}.png", png(IMAGES[i]))


def write_captions(root):
    for i in range(12):
        write(root / f"{i}.png", png(IMAGES[i]))
        write(root / f"{i}.txt", CAPTIONS[i] + "\n")


def write_jsonl(root):
    rows = [{"file_name": f"x/{i}.png", "text": CAPTIONS[i], "label": NAMES[LABELS[i]]} for i in range(12)]
    write(root / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for i in range(12):
        write(root / "x" / f"{i}.png", png(IMAGES[i]))


def write_csv(root):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([("file_name", "text", "label"), *((f"{i}.png", CAPTIONS[i], LABELS[i]) for i in range(12))])
    write(root / "metadata.csv", text.getvalue())
    for i in range(12):
        write(root / f"{i}.png", png(IMAGES[i]))


def write_parquet(root):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root.mkdir(parents=True, exist_ok=True)
    table = {"file_name": [f"{i}.png" for i in range(12)], "text": CAPTIONS, "label": LABELS}
    parquet.write_table(pyarrow.table(table), root / "metadata.parquet")
    for i in range(12):
        write(root / f"{i}.png", png(IMAGES[i]))


@pytest.mark.parametrize(
    ("writer", "classes", "names", "captions"),
    [
        (write_classes, 3, NAMES, (None,) * 12),
        (write_captions, 0, (), CAPTIONS),
        (write_jsonl, 3, NAMES, CAPTIONS),
        (write_csv, 3, (), CAPTIONS),
        (write_parquet, 3, (), CAPTIONS),
    ],
)
def test_layouts_of_a_folder(tmp_path, writer, classes, names, captions):
    writer(tmp_path)
    assert info("folder", tmp_path) == (3, classes, names)
    assert contents(opened("folder", tmp_path)) == expected(LABELS if classes else NONE, captions)


def test_formats_are_read_without_loss(tmp_path):
    for kind in ("PNG", "BMP", "TIFF"):
        write(tmp_path / f"a.{kind.lower()}", png(IMAGES[0], kind))
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.webp", lossless=True)
    source = opened("folder", tmp_path)
    assert len(source) == 4 and all(np.array_equal(e["image"], IMAGES[0]) for e in source)


def test_splits_of_a_folder_share_their_classes(tmp_path):
    """A class without examples in a split does not shift the numbers of the others."""
    write_classes(tmp_path / "train", range(9))
    write_classes(tmp_path / "test", (10, 11))
    assert contents(opened("folder", tmp_path)) == expected(indices=range(9))
    assert contents(opened("folder", tmp_path, "test")) == expected(indices=(10, 11))
    with pytest.raises(UserError, match=r"no split 'validation'; choose from train, test"):
        opened("folder", tmp_path, "validation")


@pytest.mark.parametrize("parts", [("train[:75%]", "train[75%:]"), ("train[:5]", "train[5:-2]", "train[-2:]")])
def test_slices_divide_a_split(tmp_path, parts):
    write_classes(tmp_path)
    found = [contents(opened("folder", tmp_path, part)) for part in parts]
    assert sum(map(len, found)) == 12 and {k: v for part in found for k, v in part.items()} == expected()


def test_a_slice_of_class_folders_has_all_classes(tmp_path):
    for i in range(300):
        write(tmp_path / f"class{i // 100}" / f"{i}.png", png(IMAGES[i % 12]))
    counts = np.bincount([int(e["label"]) for e in opened("folder", tmp_path, "train[90%:]")], minlength=3)
    assert counts.sum() == 30 and counts.min() >= 3  # all of one class: the order would be that of the folders


@pytest.mark.parametrize(
    ("save", "keys"),
    [(np.savez, ("arr_0", "arr_1")), (np.savez, ("images", "labels")), (np.savez_compressed, ("images", "labels"))],
)
def test_arrays(tmp_path, save, keys):
    save(tmp_path / "x.npz", **dict(zip(keys, (IMAGES, LABELS), strict=True)))
    assert info("npz:x.npz", tmp_path) == (3, 3, ())
    assert contents(opened("npz:x.npz", tmp_path)) == expected()
    assert contents(opened(f"npz:{tmp_path}/x.npz", split="train[4:]")) == expected(indices=range(4, 12))


def write_shard(path, indices, *, kinds=("png", "cls", "txt"), json_fields=None):
    with tarfile.open(path, "w") as archive:
        for i in indices:
            content = {"png": png(IMAGES[i]), "cls": str(LABELS[i]).encode(), "txt": CAPTIONS[i].encode()}
            content["json"] = json.dumps({"label": NAMES[LABELS[i]], "text": CAPTIONS[i]}).encode()
            for kind in kinds:
                member = tarfile.TarInfo(f"part/{i:04d}.{kind}")
                member.size = len(content[kind])
                archive.addfile(member, io.BytesIO(content[kind]))


@pytest.mark.parametrize(("kinds", "names"), [(("png", "cls", "txt"), ()), (("json", "png"), NAMES)])
def test_shards(tmp_path, kinds, names):
    write_shard(tmp_path / "train-0.tar", range(5), kinds=kinds)
    write_shard(tmp_path / "train-1.tar", range(5, 12), kinds=kinds)
    write_shard(tmp_path / "test-0.tar", range(3), kinds=kinds)
    assert info("tar:train-*.tar", tmp_path) == (3, 3, names)
    assert contents(opened("tar:train-*.tar", tmp_path)) == expected(LABELS, CAPTIONS)
    assert contents(opened("tar:{split}-*.tar", tmp_path, "test")) == expected(LABELS, CAPTIONS, range(3))


def test_tensorflow_datasets(cifar):
    directory, arrays = cifar
    assert info("tfds:cifar10", directory)[:2] == (3, 10)
    source = opened("tfds:cifar10", directory, "test", 32)
    images, labels = arrays["test"]
    want = {image.tobytes(): (int(label), None) for image, label in zip(images, labels, strict=True)}
    assert contents(source) == want
    with pytest.raises(UserError, match="no split 'valid'"):
        opened("tfds:cifar10", directory, "valid")
    with pytest.raises(MissingData, match="tfds build mnist --file_format=array_record"):
        opened("tfds:mnist", directory)


def test_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES)), "text": datasets.Value("string")}
    )
    columns = {"img": [{"bytes": png(image)} for image in IMAGES], "label": LABELS.tolist(), "text": list(CAPTIONS)}
    whole = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(3))}).save_to_disk(tmp_path / "x")
    assert info("hf:x", tmp_path) == (3, 3, NAMES)
    assert contents(opened("hf:x", tmp_path)) == expected(LABELS, CAPTIONS)
    assert contents(opened("hf:x", tmp_path, "test")) == expected(LABELS, CAPTIONS, range(3))
    assert contents(opened("hf:x", tmp_path, "train[2:4]")) == expected(LABELS, CAPTIONS, (2, 3))


def test_hugging_face_is_optional(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'diffjax\[hf\]'"):
        opened("hf:cifar10")


def test_the_example_of_a_source(tmp_path, monkeypatch):
    """A function from a query to records is all that a new source needs; CONTRIBUTING.md shows one."""
    import tifffile

    text = (tiny.ROOT / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n(def open_pages.*?)```", text, re.DOTALL)[1]
    assert code.count("\n") <= 15
    scope = {"Path": pathlib.Path, "tifffile": tifffile, **vars(records)}
    exec(code, scope)
    name, entry = re.search(r'`"(pages:)": (.*?)` in the table `OPENERS`', text).groups()
    monkeypatch.setitem(sources.OPENERS, name, eval(entry, vars(sources) | scope))
    tifffile.imwrite(tmp_path / "x.tif", IMAGES, photometric="rgb")
    write(tmp_path / "x.txt", "\n".join(NAMES[label] for label in LABELS))
    assert info("pages:x.tif", tmp_path) == (3, 3, NAMES)
    assert contents(opened("pages:x.tif", tmp_path)) == expected()
    assert contents(opened("pages:x.tif", tmp_path, "train[4:]")) == expected(indices=range(4, 12))
    cloudpickle.dumps(opened("pages:x.tif", tmp_path))


# --- pixels ---


def one(tmp_path, content, suffix="png", size=8, **options):
    write(tmp_path / "set" / f"image.{suffix}", content)
    return opened("folder", tmp_path / "set", image_size=size, **options)[0]["image"]


def saved(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def test_16_bits_and_floats_are_scaled(tmp_path):
    wide = (RAMP.astype(np.uint16) * 257).astype(np.uint16)
    np.testing.assert_array_equal(one(tmp_path, saved(Image.fromarray(wide)))[..., 0], RAMP)


@pytest.mark.parametrize("colours", [False, True])
def test_floating_point_tiff(tmp_path, colours):
    import tifffile

    values = (IMAGES[0] if colours else RAMP).astype(np.float32) / 255
    content = io.BytesIO()
    tifffile.imwrite(content, values, photometric="rgb" if colours else "minisblack")
    pixels = one(tmp_path, content.getvalue(), "tiff")
    np.testing.assert_array_equal(pixels.squeeze(), IMAGES[0] if colours else RAMP)


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the stored image is turned by 90 degrees counterclockwise
    content = saved(Image.fromarray(IMAGES[0]), exif=exif)
    np.testing.assert_array_equal(one(tmp_path, content), np.rot90(IMAGES[0], -1))


@pytest.mark.parametrize(
    ("background", "colour"), [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#10ff80", (16, 255, 128))]
)
def test_alpha_is_composited(tmp_path, background, colour):
    alpha = RNG.integers(0, 256, (8, 8, 1), np.uint8)
    rgba = np.concatenate([IMAGES[1], alpha], -1)
    want = IMAGES[1] * (alpha / 255) + np.array(colour) * (1 - alpha / 255)
    pixels = one(tmp_path, saved(Image.fromarray(rgba)), background=background)
    np.testing.assert_allclose(pixels, want, atol=0.5001)
    rgba_pixels = one(tmp_path, saved(Image.fromarray(rgba)), background="transparent")
    np.testing.assert_array_equal(rgba_pixels, rgba)


@pytest.mark.parametrize("mode", ["P", "L", "CMYK", "1", "LA"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_modes_are_converted(tmp_path, mode, channels):
    """Grey levels 0 and 255 are in every mode without loss."""
    levels = np.where(RAMP > 100, 255, 0).astype(np.uint8)
    image = Image.fromarray(levels).convert("RGB").convert("L" if mode in ("1", "LA") else mode).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    pixels = one(tmp_path, saved(image, kind), kind.lower(), channels=channels)
    assert pixels.shape == (8, 8, channels)
    for channel in range(min(channels, 3)):
        np.testing.assert_array_equal(pixels[..., channel], levels)
    assert channels < 4 or (pixels[..., 3] == 255).all()


WIDE = np.concatenate([np.full((4, 4, 3), level, np.uint8) for level in (10, 100, 200)], axis=1)  # 4 x 12


def test_fits(tmp_path):
    content = saved(Image.fromarray(WIDE))
    assert (one(tmp_path, content, size=4) == 100).all()
    stretched = one(tmp_path, content, size=3, fit="stretch")
    np.testing.assert_array_equal(stretched[1, :, 0], (10, 100, 200))
    padded = one(tmp_path, content, size=12, fit="pad", background="black")
    np.testing.assert_array_equal(padded[4:8], WIDE)
    assert not padded[:4].any() and not padded[8:].any()
    transparent = one(tmp_path, content, size=12, fit="pad", background="transparent")
    assert not transparent[:4].any() and (transparent[4:8, ..., 3] == 255).all()


@pytest.mark.parametrize("fit", ["center_crop", "random_crop"])
@pytest.mark.parametrize("shape", [(8, 11), (8, 12), (13, 8)])
def test_the_centre_is_that_of_image_files(tmp_path, shape, fit):
    """Also of odd margins, which are one pixel smaller at the top or left."""
    pixels = RNG.integers(0, 256, (*shape, 3), np.uint8)
    found = one(tmp_path, saved(Image.fromarray(pixels)), fit=fit)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    np.testing.assert_array_equal(found, pixels[top : top + 8, left : left + 8])
    np.testing.assert_array_equal(found, image_files.load_image(tmp_path / "set" / "image.png", 8, 3))


def test_positions_of_crops_are_equally_likely():
    positions = np.linspace(0, 1, 3001)[1:]
    lefts = [int(image_files.crop(np.arange(10)[None, :, None], 1, (0, p))[0, 0, 0]) for p in positions]
    assert np.bincount(lefts).tolist() == [300] * 10


def test_jpeg_at_reduced_scale_is_the_mean(tmp_path):
    """Decoding at 1/8 of the size, of a smooth image."""
    y, x = np.mgrid[:1024, :1024] / 1024
    image = np.stack([255 * x, 255 * y, 255 * (1 - x)], -1).astype(np.uint8)
    pixels = one(tmp_path, saved(Image.fromarray(image), "JPEG", quality=95), "jpg", size=16)
    mean = image.reshape(16, 64, 16, 64, 3).mean((1, 3))
    np.testing.assert_allclose(pixels, mean, atol=2)


def test_random_crops_depend_on_the_position_in_the_run(tmp_path):
    for i in range(6):
        write(tmp_path / f"{i}.png", saved(Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (8, 1)))))
    source = opened("folder", tmp_path, image_size=8, fit="random_crop")
    wide = [data.Batches(source, batch_size=size, seed=3) for size in (6, 2)]
    whole = np.concatenate([wide[0].batch(step)["image"] for step in range(20)])
    parts = np.concatenate([wide[1].batch(step)["image"] for step in range(60)])
    np.testing.assert_array_equal(whole, parts)  # independent of the batch size
    left = whole[:, 0, 0, 0].astype(int)
    assert (whole[:, 0, :, 0] == left[:, None] + np.arange(8)).all()
    assert left.min() < 10 and left.max() > 46 and len(set(left)) > 25  # 57 places
    other = data.Batches(source, batch_size=6, seed=4).batch(0)["image"]
    assert not np.array_equal(other, whole[:6])
    assert (source[0]["image"][0, :, 0] == np.arange(28, 36)).all()  # evaluation: the centre


# --- memory ---


@pytest.mark.parametrize("cache_gib", [0.0, 3e-6, -1.0])
def test_batches_do_not_depend_on_the_cache(tmp_path, cache_gib):
    write_classes(tmp_path)
    source = opened("folder", tmp_path, cache_gib=cache_gib)  # 3e-6: about three examples
    reference = data.Batches(opened("folder", tmp_path), batch_size=5, seed=1, flip=True)
    batches = data.Batches(source, batch_size=5, seed=1, flip=True).iterate(0, threads=3)
    for step, batch in zip(range(9), batches, strict=False):
        for key, value in reference.batch(step).items():
            np.testing.assert_array_equal(batch[key], value)


def test_the_cache_is_bounded(tmp_path):
    from diffjax.data.cache import Cache

    cache, computed = Cache(1e-3, 20), []  # 1 MiB
    for _ in range(2):
        for i in range(20):
            cache.get(i, lambda i: computed.append(i) or {"image": np.full((100, 1000, 1), i, np.uint8), "label": i})
    assert computed[:20] == list(range(20)) and computed[20:] == list(range(10, 20))  # 10 of 20 fit
    with pytest.raises(UserError, match=r"data\.cache_gib=-3: must be a finite number from 0"):
        Cache(-3, 20)


# --- bad input ---


def bad_metadata(root):
    write(root / "metadata.jsonl", '{"file_name": "1.png"}\n{"file_name": "gone.png"}\n')
    write(root / "1.png", png(IMAGES[0]))


def mixed(root):
    write(root / "1.png", png(IMAGES[0]))
    write(root / "2.png", png(RAMP))


def lone_caption(root):
    write_captions(root)
    (root / "7.txt").unlink()


def mixed_labels(root):
    write(root / "metadata.jsonl", '{"file_name": "1.png", "label": 1}\n{"file_name": "2.png", "label": "a"}\n')
    for i in (1, 2):
        write(root / f"{i}.png", png(IMAGES[i]))


@pytest.mark.parametrize(
    ("writer", "options", "message"),
    [
        (lambda root: None, {}, "has no images"),
        (bad_metadata, {}, r"metadata.jsonl: names images that are not in the folder \(1\), such as gone.png"),
        (mixed, {}, r"data.channels=0: \S+2.png is grey, but \S+1.png has colours; set data.channels"),
        (lone_caption, {}, r"7.png: has no caption file \(1 of 12 images lack a .txt\)"),
        (mixed_labels, {}, "labels must be all whole numbers, or all names"),
        (lambda root: write(root / "metadata.csv", "x,text\n1,2\n"), {}, "row 1 has no file_name"),
        (lambda root: write(root / "metadata.jsonl", "{"), {}, "metadata.jsonl: is damaged"),
        (write_classes, {"num_classes": 2}, r"data.num_classes=2: data.name=folder has 3"),
        (write_captions, {"num_classes": 2}, "has no labels"),
        (write_classes, {"class_names": ("ant", "bee")}, "the class 'cat' is not among data.class_names"),
        (write_classes, {"fit": "crop"}, "unknown data.fit 'crop': did you mean"),
        (write_classes, {"background": "whit"}, "data.background=whit: is not a colour"),
        (write_classes, {"channels": 2}, "data.channels=2: must be 1, 3 or 4"),
        (write_classes, {"channels": 3, "background": "transparent"}, "requires 4 channels"),
    ],
)
def test_bad_folders_are_one_line(tmp_path, writer, options, message):
    writer(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        opened("folder", tmp_path, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("npy:x.npz", "did you mean 'npz:x.npz'"),
        ("npz", "must have a name or path after the prefix, as in npz:NAME"),
        ("npz:", "must have a name or path after the prefix"),
        ("fodler", "did you mean 'folder'"),
        ("tfd:mnist", "did you mean 'tfds:mnist'"),
        ("npz:gone.npz", "no such file"),
        ("folder", "data.dir is not set"),
        ("tfds:mnist", "data.dir is not set"),
    ],
)
def test_names_of_data_sets(name, message):
    with pytest.raises(UserError, match=message):
        opened(name)


def test_bad_archives_are_one_line(tmp_path):
    whole = io.BytesIO()
    np.savez(whole, images=IMAGES, labels=LABELS)
    write(tmp_path / "cut.npz", whole.getvalue()[:-500])
    np.savez(tmp_path / "short.npz", images=IMAGES, labels=LABELS[:5])
    np.savez(tmp_path / "names.npz", frames=IMAGES)
    np.savez(tmp_path / "objects.npz", images=np.array([{}] * 3, object))
    np.savez(tmp_path / "negative.npz", images=IMAGES, labels=LABELS - 1)
    np.savez(tmp_path / "wide.npz", images=np.zeros((2, 4, 4, 2), np.uint8))
    for name, message in {
        "cut": "is not an .npz file, or is damaged",
        "short": "12 images but 5 labels",
        "names": "has no array images or arr_0, but frames",
        "objects": "holds Python objects",
        "negative": "label -1 is not from 0",
    }.items():
        with pytest.raises(UserError, match=message):
            opened(f"npz:{name}.npz", tmp_path)
    with pytest.raises(UserError, match="shape"):
        opened("npz:wide.npz", tmp_path)[0]


@pytest.mark.parametrize("cut", [700, 1000, 5000])
def test_a_shard_that_ends_early_is_named(tmp_path, cut):
    write_shard(tmp_path / "a.tar", range(12))
    write(tmp_path / "a.tar", (tmp_path / "a.tar").read_bytes()[:cut])
    with pytest.raises(UserError, match=r"a\.tar: (ends early|is not a whole)") as error:
        opened("tar:*.tar", tmp_path)
    assert "copy the shard again" in str(error.value)


def test_a_damaged_file_is_named_or_skipped(tmp_path, capsys):
    write_classes(tmp_path)
    victim = tmp_path / "bee" / "4.png"
    write(victim, victim.read_bytes()[:60])
    with pytest.raises(UserError, match=r"bee/4.png: .*: replace or delete the file, or skip it with"):
        contents(opened("folder", tmp_path))
    found = contents(opened("folder", tmp_path, on_corrupt="skip"))
    assert found == expected(indices=[i for i in range(12) if i != 4])
    assert capsys.readouterr().err.count("bee/4.png") == 1


def test_decompression_bombs_are_refused(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb.png: larger than 67,108,864 pixels"):
        opened("folder", tmp_path, channels=3)[0]


def test_built_in_sets_accept_channels_and_no_labels():
    source = opened("digits", split="test", channels=3, num_classes=0)
    plain = opened("digits", split="test")
    assert info("digits", channels=3, num_classes=0) == (3, 0, ())
    np.testing.assert_array_equal(source[7]["image"], np.repeat(plain[7]["image"], 3, axis=-1))
    assert {int(e["label"]) for e in source} == {0}


def test_the_rest_of_a_slice():
    from diffjax.data.records import complement

    rests = {"train[:90%]": "train[90%:]", "train[90%:]": "train[:90%]", "a[:-2]": "a[-2:]", "train": None}
    assert {split: complement(split) for split in rests} == rests
    assert complement("train[1:2]") is None and complement("train[:100%]") is None


DIFFICULTIES = np.round(np.linspace(0.0, 1.0, 12), 3)


def write_numbers_jsonl(root):
    rows = [{"file_name": f"{i}.png", "difficulty": DIFFICULTIES[i], "colour": "red"} for i in range(12)]
    rows = [row | ({} if i == 3 else {"height": i}) for i, row in enumerate(rows)]
    write(root / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for i in range(12):
        write(root / f"{i}.png", png(IMAGES[i]))


def write_numbers_csv(root):
    rows = "".join(f"{i}.png,{DIFFICULTIES[i]},red\n" for i in range(12))
    write(root / "metadata.csv", "file_name,difficulty,colour\n" + rows)
    for i in range(12):
        write(root / f"{i}.png", png(IMAGES[i]))


def write_numbers_parquet(root):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root.mkdir(parents=True, exist_ok=True)
    table = {"file_name": [f"{i}.png" for i in range(12)], "difficulty": DIFFICULTIES, "colour": ["red"] * 12}
    parquet.write_table(pyarrow.table(table), root / "metadata.parquet")
    for i in range(12):
        write(root / f"{i}.png", png(IMAGES[i]))


def numbers(source):
    source.__getitems__(range(len(source)))  # then images come from the cache
    return {e["image"].tobytes(): float(e["number"]) for e in source.__getitems__(range(len(source)))}


@pytest.mark.parametrize("writer", [write_numbers_jsonl, write_numbers_csv, write_numbers_parquet])
def test_a_column_of_numbers_of_a_folder(tmp_path, writer):
    writer(tmp_path)
    numbers_by_image = {IMAGES[i].tobytes(): np.float32(DIFFICULTIES[i]) for i in range(12)}
    assert numbers(opened("folder", tmp_path, number="difficulty")) == numbers_by_image
    parts = [numbers(opened("folder", tmp_path, part, number="difficulty")) for part in ("train[:4]", "train[4:]")]
    assert (len(parts[0]), parts[0] | parts[1]) == (4, numbers_by_image)
    assert "number" not in opened("folder", tmp_path)[0]
    for column in ("colour", "height", "depth"):  # text, missing in one row, no such column
        with pytest.raises(UserError, match=rf"data.number={column}: must be a column .* the data set has difficulty"):
            opened("folder", tmp_path, number=column)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_of_numbers_of_an_npz_file(tmp_path, save):
    path, objects = tmp_path / "a.npz", np.array([{}] * 12, object)
    save(path, images=IMAGES, labels=LABELS, difficulty=DIFFICULTIES, vectors=np.ones((12, 2)), objects=objects)
    source = opened(f"npz:{path}", number="difficulty")
    assert numbers(source) == {IMAGES[i].tobytes(): np.float32(DIFFICULTIES[i]) for i in range(12)}
    assert [e["number"] for e in opened(f"npz:{path}", number="labels")] == LABELS.tolist()
    for name in ("vectors", "objects"):
        with pytest.raises(UserError, match="the data set has difficulty, labels"):
            opened(f"npz:{path}", number=name)


def test_built_in_sets_have_no_numbers():
    with pytest.raises(UserError, match=r"data.number=x: digits has no columns of numbers; use a folder"):
        opened("digits", number="x")
