"""Data sets that cannot be trained on: one line that names the problem, exit code 2, and nothing written."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest

from tests import tiny
from tests.command_line import refused
from tests.image_folders import png, write

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
LABELS = np.array([0, 1, 0, 1])


def images(root, *names):
    for image, name in zip(IMAGES, names or ("0.png", "1.png"), strict=False):
        write(root / name, png(image))


def metadata(content, name="metadata.csv"):
    """Returns a function that writes two images and their metadata: text, bytes or rows."""

    def write_metadata(root):
        images(root)
        rows = content if isinstance(content, str | bytes) else "\n".join(map(json.dumps, content))
        write(root / name, rows)

    return write_metadata


def rows(*labels):
    return metadata([{"file_name": f"{i}.png", "label": label} for i, label in enumerate(labels)], "metadata.jsonl")


def link(name, target):
    def write_link(root):
        images(root)
        (root / name).symlink_to(root / target)

    return write_link


def captions(*contents):
    def write_captions(root):
        images(root)
        for i, content in enumerate(contents):
            write(root / f"{i}.txt", content)

    return write_captions


FOLDERS = {
    "empty": (lambda root: None, "data.dir=DIR: has no images (.png,"),
    "missing": (lambda root: root.rmdir(), "data.dir=DIR: is not a folder"),
    "no such image": (
        metadata("file_name\n0.png\ngone.png\n"),
        "names images that are not in the folder (1), such as gone",
    ),
    "absolute path": (metadata("file_name\n/0.png\n"), "are not in the folder (1), such as /0.png; correct file_name"),
    "path out of the folder": (metadata("file_name\n../0.png\n"), "are not in the folder (1), such as ../0.png"),
    "image twice": (metadata("file_name\n0.png\n1.png\n./0.png\n"), "metadata.csv: row 3 names ./0.png again"),
    "two metadata files": (
        lambda root: (metadata("file_name\n0.png\n1.png")(root), rows(0, 1)(root)),
        "metadata.jsonl: row 1 names 0.png again",
    ),
    "no rows": (metadata("file_name,text\n"), "metadata.csv: names no images"),
    "empty metadata": (metadata(""), "metadata.csv: names no images"),
    "other columns": (metadata("name,text\n0.png,a\n"), "metadata.csv: row 1 has no file_name"),
    "semicolons": (metadata("file_name;text\n0.png;a\n"), "row 1 has no file_name"),
    "not UTF-8": (
        metadata("file_name,text\n0.png,caf\xe9\n".encode("latin1")),
        "metadata.csv: is damaged ('utf-8' codec",
    ),
    "unquoted comma": (metadata("file_name,text\n0.png,a cat, red\n1.png,b\n"), "the row of 0.png has too many cells"),
    "a caption is missing": (metadata("file_name,text\n0.png,a\n1.png\n"), "metadata.csv: 1.png has no text"),
    "captions that are not text": (
        metadata([{"file_name": f"{i}.png", "text": ["a"]} for i in range(2)], "metadata.jsonl"),
        "the caption of 0.png must be text, not ['a']",
    ),
    "not JSON": (
        metadata('[{"file_name": "0.png"}]', "metadata.jsonl"),
        "metadata.jsonl: is damaged (a line is not an",
    ),
    "numbers and names": (rows(0, "a"), "labels must be all whole numbers, or all names"),
    "fractions": (rows(0, 0.5), "labels must be all whole numbers"),
    "negative": (rows(0, -1), "label -1 is not from 0 to 999,999"),
    "dates": (rows(0, 20_260_131), "label 20260131 is not from 0 to 999,999"),
    "beyond the classes": (rows(0, 5), "data.num_classes=3: data.name=folder has 6", "--config.data.num_classes=3"),
    "one grey image": (
        lambda root: (images(root, "0.png"), write(root / "1.png", png(IMAGES[1, ..., 0]))),
        "1.png is grey, but DIR/0.png has colours; set data.channels",
    ),
    "the first file has no bytes": (lambda root: write(root / "0.png", b""), "0.png: cannot be read as an image"),
    "link to the folder": (link("loop", "."), "data.dir=DIR: loop is a symbolic link to a folder that contains it"),
    "link to itself": (link("self.png", "self.png"), "data.dir=DIR: DIR/self.png cannot be read (Too many levels of"),
    "split": (images, "has no split 'valid'; choose from train", "--config.data.split=valid"),
    "empty slice": (images, "data.split=train[:0]: has no examples", "--config.data.split=train[:0]"),
    "captions": (captions("a"), "1.png: has no caption file (1 of 2"),
    "no captions for a text-conditioned model": (images, "data.name=folder: has no captions", "TEXT"),
    "caption that is not UTF-8": (captions(b"caf\xe9", b"caf\xe9"), ".txt: is not UTF-8", "TEXT"),
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Config files of a model without conditions, and of a text-conditioned one."""
    folder = tmp_path_factory.mktemp("configs")
    quiet = {"train__num_preview_samples": 0, "parallel__num_devices": 1, "data__name": "folder", "data__image_size": 8}
    plain = {"model": tiny.DIT, "diffusion__class_conditional": False, "diffusion__label_dropout": 0.0}
    files = {
        "plain": tiny.write(folder / "plain.py", **quiet | plain, sampler__guidance=1.0),
        "text": tiny.write(folder / "text.py", "clip_shapes", **quiet, image_encoder__patch=4),
    }
    return files


def check_refused(capsys, config, tmp_path, directory, message, *flags):
    run = tmp_path / "run"
    error = refused(capsys, "train", f"--config={config}", f"--workdir={run}", f"--config.data.dir={directory}", *flags)
    assert message.replace("DIR", str(directory)) in error
    assert not run.exists()


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_refused(case, configs, tmp_path, capsys):
    writer, message, *flags = FOLDERS[case]
    root = tmp_path / "data"
    root.mkdir()
    writer(root)
    config = configs["text" if "TEXT" in flags else "plain"]
    check_refused(capsys, config, tmp_path, root, message, *(flag for flag in flags if flag != "TEXT"))


def npz(length=None, compressed=False, **arrays):
    def write_npz(root):
        content = io.BytesIO()
        (np.savez_compressed if compressed else np.savez)(content, **arrays)
        write(root / "x.npz", content.getvalue()[:length])

    return write_npz


def shard(length=None, damaged=None, kinds=("png", "cls")):
    """Returns a function that writes a shard; files take 1,024 bytes each, the first 512 of them are the header."""

    def write_shard(root):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for i, image in enumerate(IMAGES):
                for kind, data in (("png", png(image)), ("cls", b"%d" % LABELS[i]), ("txt", b"a cat")):
                    if kind in kinds:
                        member = tarfile.TarInfo(f"{i}.{kind}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
        damaged_content = bytearray(content.getvalue()[:length])
        if damaged is not None:
            damaged_content[damaged] ^= 255
        write(root / "x.tar", bytes(damaged_content))

    return write_shard


ARCHIVES = {
    "npz that is cut": (npz(-500, images=IMAGES), "npz:x.npz", "x.npz: is not an .npz file, or is damaged"),
    "compressed npz that is cut": (npz(900, True, images=IMAGES), "npz:x.npz", "x.npz: is not an .npz file"),
    "text": (lambda root: write(root / "x.npz", "images"), "npz:x.npz", "x.npz: is not an .npz file"),
    "other arrays": (npz(frames=IMAGES), "npz:x.npz", "has no array images or arr_0, but frames"),
    "no images": (npz(images=IMAGES[:0]), "npz:x.npz", "has no examples"),
    "label arrays": (
        npz(images=IMAGES, labels=np.zeros((4, 1, 1))),
        "npz:x.npz",
        "labels has shape (4, 1, 1); it must be",
    ),
    "channels first": (npz(images=IMAGES.transpose(0, 3, 1, 2)), "npz:x.npz", "an array of shape (3, 8, 8)"),
    "values from 0 to 255": (
        npz(images=IMAGES.astype(np.float32)),
        "npz:x.npz",
        "scale them to [0, 1]): write the file",
    ),
    "no file": (lambda root: None, "npz:x.npz", "data.name=npz:x.npz: no such file in data.dir=DIR"),
    "no shard": (lambda root: None, "tar:*.tar", "data.name=tar:*.tar: no such file in data.dir=DIR"),
    "header that is cut": (shard(100), "tar:*.tar", "x.tar: is not a whole .tar"),
    "file that is cut": (shard(600), "tar:*.tar", "x.tar: ends early, inside 0.png"),
    "no end": (shard(8 * 1024), "tar:*.tar", "x.tar: ends early, without the mark of its end"),
    "end after a file": (shard(3 * 1024), "tar:*.tar", "x.tar: ends early, without the mark of its end"),
    "damaged header": (shard(damaged=2048 + 20), "tar:*.tar", "x.tar: is damaged at byte 2,048; copy the shard again"),
    "no bytes": (lambda root: write(root / "x.tar", b""), "tar:*.tar", "x.tar: is not a whole .tar (empty file)"),
    "shard without images": (shard(kinds=("cls",)), "tar:*.tar", "the shards have no images"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_are_refused(case, configs, tmp_path, capsys):
    writer, name, message = ARCHIVES[case]
    root = tmp_path / "data"
    root.mkdir()
    writer(root)
    check_refused(capsys, configs["plain"], tmp_path, root, message, f"--config.data.name={name}")


@pytest.mark.parametrize("name", ["cifar10", "tfds:cifar10"])
@pytest.mark.parametrize("content", [b"", None, slice(-1000)], ids=["empty", "missing", "cut"])
def test_record_files_that_end_early(name, content, cifar, configs, tmp_path, capsys):
    shutil.copytree(cifar[0], tmp_path / "data")
    file = next((tmp_path / "data").rglob("*train.array_record*"))
    whole = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_bytes(whole[content] if isinstance(content, slice) else content)
    message = f"{file}: is missing, damaged or ends early, as 0 of 40 records can be read; delete"
    flags = f"--config.data.name={name}", "--config.data.channels=3"
    check_refused(capsys, configs["plain"], tmp_path, tmp_path / "data", message, *flags)


def test_misspelt_names_of_prepared_sets(cifar, configs, tmp_path, capsys):
    message = f"cifar11 is not prepared in {cifar[0]}: did you mean 'cifar10'? Otherwise prepare it with `pip install"
    check_refused(capsys, configs["plain"], tmp_path, cifar[0], message, "--config.data.name=tfds:cifar11")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1, 2], "text": ["x", "y"]}, "data.name=hf:x: has no image column, but a, text"),
        ({"image": IMAGES[:2], "label": [0.5, 1.0]}, "column label: labels must be all whole numbers"),
        ({"image": IMAGES[:2], "label": [0, None]}, "hf:x:1: label -1 is not from 0 to 1, as there are 2 classes"),
        ({"image": [IMAGES[0]], "text": [None]}, "hf:x:0: has no text; remove the row"),
        ({"image": []}, "data.name=hf:x: cannot be loaded"),
    ],
)
def test_hugging_face_sets_that_are_refused(columns, message, configs, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    kinds = {"label": datasets.ClassLabel(names=["a", "b"]) if None in columns.get("label", ()) else None}
    if "image" in columns:
        columns = columns | {"image": [{"bytes": png(image)} for image in columns["image"]]}
        kinds["image"] = datasets.Image()
    created = datasets.Dataset.from_dict(columns)
    for name, kind in kinds.items():
        created = created.cast_column(name, kind) if kind else created
    created.save_to_disk(tmp_path / "data" / "x")
    capsys.readouterr()
    check_refused(capsys, configs["plain"], tmp_path, tmp_path / "data", message, "--config.data.name=hf:x")


def test_a_folder_that_cannot_be_listed(configs, tmp_path, capsys, monkeypatch):
    """Permissions do not apply to root, who may run the tests."""
    images(tmp_path / "data" / "a", "0.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = "data.dir=DIR: DIR/a cannot be read (Permission denied)"
    check_refused(capsys, configs["plain"], tmp_path, tmp_path / "data", message)
