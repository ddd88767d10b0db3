"""Image sources against independent reads of their data."""

import concurrent.futures
import re
import shutil
import threading

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffjax import data
from diffjax.data import examples, image_files, prepare, sources
from diffjax.errors import UserError


def open_digits(split, image_size=8):
    return data.open_dataset("digits", directory="", split=split, image_size=image_size)


@pytest.mark.parametrize(
    ("name", "background", "channels", "classes"),
    [
        ("digits", "white", 1, 10),
        ("fashion_mnist", "white", 1, 10),
        ("cifar10", "white", 3, 10),
        ("emoji", "white", 3, 10),
        ("emoji", "transparent", 4, 10),
        ("shapes", "white", 3, 5),
    ],
)
def test_shapes_and_classes_of_sources(name, background, channels, classes):
    assert data.image_spec(name, 24, background) == (24, channels, classes)
    assert len(set(data.class_names(name))) == classes


def test_digits_equal_scikit_learns():
    bunch = load_digits()
    expected = {
        (np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes(), label)
        for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    train, test = open_digits("train"), open_digits("test")
    assert (len(train), len(test)) == (1437, 360)
    seen = []
    for source in (train, test):
        for example in source:
            assert example["image"].shape == (8, 8, 1) and example["image"].dtype == np.uint8
            assert example["label"].dtype == np.int32 and example["label"].shape == ()
            seen.append((example["image"].tobytes(), int(example["label"])))
    assert set(seen) == expected and len(seen) == 1797  # every digit once, in train or in test
    assert max(np.max(train[i]["image"]) for i in range(100)) == 255


def test_digits_split_is_stratified():
    share = [np.bincount([e["label"] for e in open_digits(split)], minlength=10) for split in ("train", "test")]
    np.testing.assert_allclose(share[1] / (share[0] + share[1]), 0.2, atol=0.006)


def test_an_index_out_of_range_raises():
    source = open_digits("test")
    with pytest.raises(IndexError):
        source[360]
    with pytest.raises(IndexError):
        source[-1]


def test_downsampling_averages_areas():
    small, native = open_digits("test", 4), open_digits("test")
    for i in range(20):
        mean = native[i]["image"].astype(float).reshape(4, 2, 4, 2).mean((1, 3))
        assert abs(small[i]["image"][..., 0] - mean).max() <= 0.5 + 1e-6


def test_upsampling_keeps_shape_and_range():
    assert open_digits("test", 20)[0]["image"].shape == (20, 20, 1)


def test_resize_ignores_colours_of_transparent_pixels():
    pixels = np.zeros((8, 8, 4), np.uint8)  # transparent black next to opaque red, the edge within an area
    pixels[:, 3:] = (200, 10, 10, 255)
    small = image_files.resize(pixels, 4)
    np.testing.assert_array_equal(small[:, 1:, :3], np.broadcast_to([200, 10, 10], (4, 3, 3)))
    np.testing.assert_allclose(small[0, :, 3], [0, 127.5, 255, 255], atol=0.5)


def test_prepared_set_is_read_unchanged(cifar):
    directory, arrays = cifar
    for split, (images, labels) in arrays.items():
        source = data.open_dataset("cifar10", directory=str(directory), split=split, image_size=32)
        expected = sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))
        for _ in range(2):  # the second time from memory
            examples = source.__getitems__(list(range(len(source))))
            assert sorted((e["image"].tobytes(), int(e["label"])) for e in examples) == expected
        assert examples[0]["image"].dtype == np.uint8 and examples[0]["label"].dtype == np.int32


def test_prepared_set_is_read_by_threads(cifar):
    batches = [
        data.Batches(
            data.open_dataset("cifar10", directory=cifar[0], split="train", image_size=32), batch_size=7, seed=0
        )
        for _ in range(2)
    ]
    iterator = batches[0].iterate(threads=4, buffer=8)
    for step in range(12):
        np.testing.assert_array_equal(next(iterator)["image"], batches[1].batch(step)["image"])
    iterator.close()


def test_splits_and_resizing_of_a_prepared_set(cifar):
    directory, _ = cifar
    whole = data.open_dataset("cifar10", directory=directory, split="train", image_size=32)
    part = data.open_dataset("cifar10", directory=directory, split="train[10:15]", image_size=16)
    assert len(part) == 5
    mean = whole[12]["image"].astype(float).reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert abs(part[2]["image"] - mean).max() <= 0.5 + 1e-6


def test_latest_version_is_read(cifar, tmp_path):
    directory, _ = cifar
    for version in ("3.0.2", "3.0.10"):
        (tmp_path / "cifar10" / version).mkdir(parents=True)
    for path in (directory / "cifar10" / "3.0.2").iterdir():
        target = tmp_path / "cifar10" / "3.0.10" / path.name
        target.write_bytes(path.read_bytes().replace(b'"3.0.2"', b'"3.0.10"'))
    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").write_text("{}")  # would fail if it were read
    assert len(data.open_dataset("cifar10", directory=tmp_path, split="train", image_size=32)) == 40


def test_shapes_source():
    source = data.open_dataset("shapes", directory="", split="train", image_size=32)
    example = source[7]
    assert example["image"].shape == (32, 32, 3) and example["image"].dtype == np.uint8
    kind = data.class_names("shapes")[example["label"]]
    assert kind in example["caption"].split(" above ")[0].split(" below ")[0]
    assert source.captions([7, 8]) == [source[7]["caption"], source[8]["caption"]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: data.image_spec("cifar", 32), "did you mean 'cifar10'"),
        (lambda d: data.class_names("cifar"), "did you mean 'cifar10'"),
        (lambda d: data.image_spec("emoji", 32, "black"), "unknown background"),
        (lambda d: data.image_spec("cifar10", 32, "transparent"), "no transparent background"),
        (lambda d: data.image_spec("cifar10", 0), "data.image_size=0: must be a whole number from 1"),
        (lambda d: open_digits("val"), "unknown split"),
        (lambda d: data.open_dataset("shapes", directory="", split="val", image_size=8), "unknown split"),
        (
            lambda d: data.open_dataset("cifar10", directory="", split="train", image_size=32),
            "data.dir is not set.*tfds build cifar10 --file_format=array_record --data_dir=DIR",
        ),
        (
            lambda d: data.open_dataset("fashion_mnist", directory=d, split="train", image_size=28),
            "not prepared in .*tfds build fashion_mnist --file_format=array_record --data_dir=/",
        ),
        (
            lambda d: data.open_dataset("emoji", directory=d, split="train", image_size=32),
            "python -m diffjax.data.prepare emoji .*--image_size=32",
        ),
        (lambda d: data.open_dataset("cifar10", directory=d, split="val", image_size=32), "choose from test, train"),
        (lambda d: data.open_dataset("cifar10", directory=d, split="train[:1x]", image_size=32), "a part such as"),
        (lambda d: data.open_dataset("cifar10", directory=d, split="train[:0]", image_size=32), "it is empty"),
    ],
)
def test_errors_are_one_helpful_line(call, message, cifar):
    with pytest.raises(UserError) as error:
        call(cifar[0])
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)


def test_a_wrong_format_raises(cifar, tmp_path):
    directory, _ = cifar
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    for path in (directory / "cifar10" / "3.0.2").iterdir():
        target = tmp_path / "cifar10" / "3.0.2" / path.name.replace("array_record", "tfrecord")
        target.write_bytes(path.read_bytes().replace(b'"array_record"', b'"tfrecord"'))
    with pytest.raises(UserError, match="not in the array_record format"):
        data.open_dataset("cifar10", directory=tmp_path, split="train", image_size=32)


def test_prepare_prints_instructions(capsys):
    assert prepare.main(["digits"]) == 0 and "no preparation" in capsys.readouterr().out
    assert prepare.main(["cifar10", "--data_dir=/d"]) == 0
    assert "tfds build cifar10 --file_format=array_record --data_dir=/d" in capsys.readouterr().out
    assert prepare.main(["emoji", "--data_dir=/d"]) == 1 and "npm install" in capsys.readouterr().err
    assert prepare.main(["emoji", "--manual_dir=/d"]) == 1 and "--data_dir" in capsys.readouterr().err
    assert prepare.main(["emoji", "--data_dir=/d", "--manual_dir=/nowhere"]) == 1
    assert "--manual_dir=/nowhere: has no npm package emoji-datasource-google" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "size", "lengths"), [("cifar10", 32, (50_000, 10_000)), ("fashion_mnist", 28, (60_000, 10_000))]
)
def test_real_sets(real, name, size, lengths):
    for split, length in zip(("train", "test"), lengths, strict=True):
        source = data.open_dataset(name, directory=real / "tfds", split=split, image_size=size)
        assert len(source) == length
        examples = source.__getitems__(list(range(200)))
        assert all(e["image"].shape == (size, size, data.image_spec(name, size).channels) for e in examples)
        assert {int(e["label"]) for e in examples} == set(range(10))


@pytest.fixture
def flipped(cifar, tmp_path):
    """The folder of a copy of the prepared set with one flipped byte among the training records."""
    directory, _ = cifar
    copy = shutil.copytree(directory, tmp_path / "copy")
    records = next(copy.rglob("*train.array_record*"))
    content = bytearray(records.read_bytes())
    content[len(content) // 3] ^= 0xFF
    records.write_bytes(content)
    return copy


def opened(directory, corrupt):
    return sources.open_dataset("cifar10", directory=str(directory), split="train", image_size=32, on_corrupt=corrupt)


def harmed(source):
    """Returns the indices of unreadable examples."""
    bad = []
    for i in range(len(source)):
        try:
            source[i]
        except UserError as error:
            assert f"example {i} of cifar10 train in /" in str(error) and "copy cannot be read (" in str(error)
            bad.append(i)
    return bad


def test_an_unreadable_example_is_reported(flipped):
    source = opened(flipped, "raise")
    assert len(harmed(source)) == 1
    with pytest.raises(UserError, match=r"data\.on_corrupt='skip'"):
        source.__getitems__(range(len(source)))


def test_an_unreadable_example_is_skipped(flipped, capsys):
    (bad,) = harmed(opened(flipped, "raise"))
    source = opened(flipped, "skip")
    images = [example["image"] for example in source.__getitems__(range(len(source)))]
    whole = [example["image"] for example in source.__getitems__(range(len(source)))]
    assert capsys.readouterr().err.count(f"example {bad} of cifar10 train in {flipped} cannot be read") == 1
    assert np.array_equal(images[bad], images[(bad + 1) % 40])
    assert np.array_equal(images, whole)


def test_skipped_examples_are_counted_and_reported_once_across_threads(capsys):
    barrier = threading.Barrier(8)

    def read(indices):
        if {2, 5} & {*indices}:
            raise OSError("gone\x1b[2J\nsecond line")
        return [{"image": np.full((1, 1, 1), i, np.uint8)} for i in indices]

    source = examples.handle_corrupt_examples(examples.Source(9, read), "numbers", skip=True)

    def work(_):
        barrier.wait()
        return [int(example["image"][0, 0, 0]) for example in source.__getitems__(range(9))]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert {tuple(found) for found in pool.map(work, range(8))} == {(0, 1, 3, 3, 4, 6, 6, 7, 8)}
    lines = capsys.readouterr().err.splitlines()
    reason = r"cannot be read (OSError: gone\x1b[2J\nsecond line): skipped"
    assert sorted(line.split(", ")[0] for line in lines) == [f"example {i} of numbers {reason}" for i in (2, 5)]
    assert [line.split(", ")[1] for line in lines] == ["1 of 9 so far", "2 of 9 so far"]


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{", b"\xff", b'{"name": 3}', b"[" * 100_000])
def test_a_damaged_description_is_reported(cifar, tmp_path, name, content):
    copy = shutil.copytree(cifar[0], tmp_path / "copy")
    (copy / "cifar10" / "3.0.2" / name).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{copy}/cifar10/3.0.2 is damaged .*: delete it and prepare it with `"
    ) as error:
        opened(copy, "raise")
    assert str(error.value).isprintable()


def test_an_unfinished_preparation_is_ignored(cifar, tmp_path):
    copy = shutil.copytree(cifar[0], tmp_path / "copy")
    for version in ("3.0.3.incompleteAB12CD", "3.x.2"):
        shutil.copytree(copy / "cifar10" / "3.0.2", copy / "cifar10" / version)
    assert len(opened(copy, "raise")) == 40


def test_records_of_another_data_set_raise(cifar, tmp_path):
    """Labels outside the classes would be read as others; fewer channels fail much later."""
    copy = shutil.copytree(cifar[0] / "cifar10", tmp_path / "fashion_mnist")
    source = sources.open_dataset("fashion_mnist", directory=str(copy.parent), split="train", image_size=32)
    with pytest.raises(
        UserError, match=r"example 3 of fashion_mnist .* 3 channels and label \d do not exist in fashion_mnist"
    ):
        source[3]


def test_skipping_ends_if_no_example_can_be_read():
    def read(indices):
        raise OSError("gone")

    with pytest.raises(UserError, match="none of the 3 examples"):
        examples.handle_corrupt_examples(examples.Source(3, read), "nothing", skip=True)[0]
    with pytest.raises(UserError, match=r"unknown data\.on_corrupt"):
        opened("", "ignore")


def test_batches_report_the_unreadable_example(flipped):
    """The error is raised in another thread."""
    stream = data.Batches(opened(flipped, "raise"), batch_size=8, seed=0).iterate()
    with pytest.raises(UserError, match=r"example \d+ of cifar10 train in \S+ cannot be read"):
        for _ in range(6):
            next(stream)
