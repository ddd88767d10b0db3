"""Folders of image files, in the conventions of `imagefolder` of Hugging Face's `datasets`.

    DIR/x.png                           images
    DIR/x.png, DIR/x.txt                with a caption next to each
    DIR/cat/x.png                       labelled by the name of their folder
    DIR/metadata.{jsonl,csv,parquet}    columns file_name, text (caption), label, and numbers
    DIR/{train,validation,test}/...     splits, each of one of these kinds; without them, everything is "train"

The order of examples is by a hash of their names, so that a slice of a split has all classes.
"""

import contextlib
import csv
import io as text_io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax import io
from diffjax.data.image_files import read_file
from diffjax.data.records import SET_DIRECTORY, Query, Record, Records, check_split, index_labels, slice_split
from diffjax.errors import MissingData, UserError, note

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
SPLITS = ("train", "validation", "test")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_MAX_METADATA = 2**32  # bytes


class _Split(NamedTuple):
    """Images of a split: paths below the root, in order, with their annotations."""

    files: list[str]
    labels: list[Any] | None
    captions: list[str] | None  # None: no captions, or captions in files
    has_caption_files: bool
    numbers: dict[str, np.ndarray] = {}  # columns of metadata that have a number for each image


def open_folder(query: Query) -> Records:
    """Opens a split of the folder `data.dir`.

    Raises:
      MissingData: the folder does not exist.
      UserError: it has no images, or no such split, or its metadata is not valid.
    """
    if not query.directory:
        raise MissingData(f"data.dir is not set: data.name=folder reads images from it; {SET_DIRECTORY}")
    root = Path(query.directory).expanduser()
    if not root.is_dir():
        raise MissingData(f"data.dir={root}: is not a folder; pass a folder of images")
    names = [name for name in SPLITS if (root / name).is_dir()] or ["train"]
    wanted = check_split(query.split, names, f"the folder {root}")
    has_splits = (root / wanted).is_dir()
    splits = {name: _read_split(root / name if has_splits else root) for name in names}
    classes: list[Any] = [label for split in splits.values() for label in split.labels or ()]
    split = splits[wanted]
    folder = root / wanted if has_splits else root
    if not split.files:
        raise UserError(f"data.dir={folder}: has no images ({', '.join(SUFFIXES)}); pass a folder of images")
    try:
        _, num_classes, class_names = index_labels(classes)
    except ValueError as error:
        raise UserError(f"data.dir={root}: {error}; correct the metadata") from error
    labels = None
    if split.labels is not None and num_classes > 1:
        numbers = {name: i for i, name in enumerate(class_names)}
        labels = np.array([numbers[x] if class_names else int(x) for x in split.labels], np.int32)
    else:
        num_classes, class_names = 0, ()

    def read(i: int) -> Record:
        path = folder / split.files[i]
        caption = split.captions[i] if split.captions else None
        if split.has_caption_files:
            caption = _read_text(path.with_suffix(".txt"))
        return Record(read_file(path), 0 if labels is None else int(labels[i]), caption)

    records = Records(
        len(split.files),
        read,
        lambda i: str(folder / split.files[i]),
        num_classes,
        class_names,
        labels,
        numbers=split.numbers,
    )
    return slice_split(records, query.split)


def _read_split(folder: Path) -> _Split:
    images, texts, metadata = [], set(), []
    for path in _walk(str(folder)):
        suffix = os.path.splitext(path)[1].lower()
        if suffix in SUFFIXES:
            images.append(path)
        elif suffix == ".txt":
            texts.add(path[: -len(suffix)])
        elif os.path.basename(path) in METADATA:
            metadata.append(path)
    if metadata:
        return _with_metadata(folder, set(images), sorted(metadata))
    images.sort(key=_order)
    folders = [os.path.dirname(path) for path in images]
    labels = [os.path.basename(name) for name in folders]
    if any(folders) and not all(folders):
        note(f"{folder} has images outside of its sub-folders, so the sub-folders are not classes")
    captioned = [os.path.splitext(path)[0] in texts for path in images]
    if any(captioned) and not all(captioned):
        raise UserError(
            f"{folder / images[captioned.index(False)]}: has no caption file ({captioned.count(False)} of "
            f"{len(images)} images lack a .txt); add it, or remove the .txt files"
        )
    return _Split(images, labels if images and all(folders) else None, None, any(captioned))


def _with_metadata(folder: Path, images: set[str], files: list[str]) -> _Split:
    """Returns the images that metadata files name, relative to the folder of each."""
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        for number, row in enumerate(_rows(folder / file), 1):
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                raise UserError(f"{folder / file}: row {number} has no file_name; add the column")
            path = os.path.normpath(os.path.join(os.path.dirname(file), name))
            if path in rows:
                raise UserError(f"{folder / file}: row {number} names {name} again; keep one row for each image")
            rows[path] = row
    if not rows:
        raise UserError(f"{folder / files[0]}: names no images; add rows with file_name, or delete the file")
    if missing := [name for name in rows if name not in images]:
        raise UserError(
            f"{folder / files[0]}: names images that are not in the folder ({len(missing)}), such as {missing[0]}; "
            "correct file_name, which is relative to the metadata file"
        )
    if len(rows) < len(images):
        note(f"{folder / files[0]} does not name {len(images) - len(rows)} of {len(images)} images: they are not used")
    names = sorted(rows, key=_order)
    labels = _column(rows, names, ("label",), folder / files[0])
    captions = _column(rows, names, ("text", "caption"), folder / files[0])
    for name, caption in zip(names, captions or (), strict=bool(captions)):
        if not isinstance(caption, str):
            raise UserError(f"{folder / files[0]}: the caption of {name} must be text, not {caption!r:.80}; correct it")
    return _Split(names, labels, captions, False, _numbers([rows[name] for name in names]))


def _numbers(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the columns, float64 [N], that have a finite number in every row."""
    columns = {}
    for column in rows[0].keys() - {"file_name", "text", "caption"}:
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # text, or None in some rows
            values = np.array([float(row.get(column)) for row in rows])  # pyright: ignore[reportArgumentType]
            if np.isfinite(values).all():
                columns[column] = values
    return columns


def _column(rows: dict[str, dict[str, Any]], names: list[str], columns: tuple[str, ...], file: Path) -> list | None:
    """Returns the values of the first of `columns` that the rows have; None: they have none of them."""
    for column in columns:
        values = [rows[name].get(column) for name in names]
        missing = [name for name, value in zip(names, values, strict=True) if value is None]
        if len(missing) < len(values):
            if missing:
                raise UserError(f"{file}: {missing[0]} has no {column}; {len(missing)} of {len(names)} rows lack it")
            return values
    return None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        content = io.read_bytes(path, _MAX_METADATA)
        if path.suffix == ".jsonl":
            for line in content.decode("utf-8-sig").split("\n"):
                if line.strip():
                    row = io.parse_json(line)
                    if not isinstance(row, dict):
                        raise ValueError("a line is not an object")
                    yield row
        elif path.suffix == ".csv":
            text = text_io.StringIO(content.decode("utf-8-sig"), newline="")
            for row in csv.DictReader(text, skipinitialspace=True):
                if None in row:
                    raise ValueError(f"the row of {row.get('file_name')} has too many cells: quote text with commas")
                yield row
        else:
            yield from _parquet_rows(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: is damaged ({str(error)[:200]}); correct the file") from error


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet, types
    except ImportError:
        raise UserError(f"{path}: requires pyarrow; install it with `pip install 'diffjax[hf]'`") from None
    file = parquet.ParquetFile(path)
    columns = [
        field.name
        for field in file.schema_arrow
        if field.name in ("file_name", "text", "caption", "label")
        or types.is_integer(field.type)
        or types.is_floating(field.type)
    ]
    return file.read(columns).to_pylist()


def _walk(root: str) -> Iterator[str]:
    """Yields the files below a folder, relative to it, without hidden ones.

    Raises:
      UserError: a folder cannot be read, or is a symbolic link to one that contains it.
    """
    pending: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]  # with the real paths of parents
    try:
        while pending:
            folder, parents = pending.pop()
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if not entry.is_dir():
                        yield path
                    elif (real := os.path.realpath(entry.path)) not in parents:
                        pending.append((path, (*parents, real)))
                    else:
                        raise UserError(
                            f"data.dir={root}: {path} is a symbolic link to a folder that contains it; delete the link"
                        )
    except OSError as error:
        raise UserError(
            f"data.dir={root}: {error.filename} cannot be read ({error.strerror}); correct or delete it"
        ) from error


def _order(path: str) -> tuple[int, str]:
    return zlib.crc32(path.encode("utf-8", "surrogateescape")), path


def _read_text(path: Path) -> str:
    try:
        return io.read_bytes(path, io.MAX_JSON).decode("utf-8-sig").strip()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8; save it as UTF-8") from error
