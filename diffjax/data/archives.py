"""Image sets in archives: arrays of an .npz file, and WebDataset shards (.tar)."""

import contextlib
import glob
import math
import os
import tarfile
import weakref
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from diffjax import io
from diffjax.data.folder import SPLITS, SUFFIXES
from diffjax.data.records import Query, Record, Records, check_split, index_labels, slice_split, split_name
from diffjax.errors import MissingData, UserError, machine_memory, note

_LOCAL_HEADER = 30  # bytes of a zip archive's local header, before the name
_ANNOTATIONS = ("cls", "txt", "json")
_MAX_HEADER = 2**16  # bytes of the header of a .npy file
_MAX_ANNOTATION = 2**24  # bytes


def open_npz(query: Query) -> Records:
    """Opens the arrays `images` (or `arr_0`) and `labels` (or `arr_1`, if present) of an .npz file, as ADM writes them.

    An uncompressed file is not loaded but mapped into memory. Other arrays with a number per image are kept too.

    Raises:
      MissingData: the file does not exist.
      UserError: it is not such a file, or too large for the memory.
    """
    path = _files(query)[0]
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            image_key = next((key for key in ("images", "arr_0") if key in names), None)
            label_key = next((key for key in ("labels", "arr_1") if key in names), None)
            if image_key is None:
                raise UserError(f"{path}: has no array images or arr_0, but {', '.join(names[:8])}; rename the array")
            images = read_array(path, archive, f"{image_key}.npy")
            labels = None if label_key is None else np.asarray(read_array(path, archive, f"{label_key}.npy"))
            numbers = _read_numbers(path, archive, set(names) - {image_key}, len(images))
    except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise UserError(f"{path}: is not an .npz file, or is damaged ({str(error)[:200]}); write it again") from error
    if images.ndim not in (3, 4):
        raise UserError(f"{path}: {image_key} has shape {images.shape}; it must be [N, H, W] or [N, H, W, C]")
    num_classes, class_names = 0, ()
    if labels is not None:
        if labels.ndim == 2 and labels.shape[1] > 1:
            labels = labels.argmax(axis=1)  # one-hot
        if labels.ndim not in (1, 2):
            raise UserError(f"{path}: {label_key} has shape {labels.shape}; it must be [N], or one-hot [N, classes]")
        if len(labels) != len(images):
            raise UserError(f"{path}: {len(images)} images but {len(labels)} labels; write the file again")
        try:
            labels, num_classes, class_names = index_labels(labels.reshape(len(images)).tolist())
        except ValueError as error:
            raise UserError(f"{path}: {error}; correct {label_key}") from error
    records = Records(
        len(images),
        lambda i: Record(np.asarray(images[i]), 0 if labels is None else int(labels[i])),
        lambda i: f"{path}:{i}",
        num_classes,
        class_names,
        labels,
        "write the file again",
        numbers,
    )
    return slice_split(records, query.split)


def _read_numbers(path: str, archive: zipfile.ZipFile, names: Iterable[str], length: int) -> dict[str, np.ndarray]:
    """Returns the arrays of shape [length] with finite numbers, as float64. Others, and damaged ones, are left out."""
    numbers = {}
    for name in names:
        if archive.getinfo(f"{name}.npy").file_size <= 8 * length + _MAX_HEADER:  # others are not read
            with contextlib.suppress(UserError, ValueError):
                values = np.asarray(read_array(path, archive, f"{name}.npy"))
                if values.shape == (length,) and values.dtype.kind in "biuf" and np.isfinite(values).all():
                    numbers[name] = values.astype(np.float64)
    return numbers


def array_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Returns the shape and the type of an array of an .npz file, without its values.

    Raises an exception of any kind for a damaged file.
    """
    shape, _, dtype, _ = _read_header(archive, name)
    return shape, dtype


def read_array(path: str, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Returns an array of an .npz file: mapped if it is not compressed, else loaded. Pickles are refused.

    Raises:
      UserError: the array holds Python objects, or is too large for the memory.
      Exception: of any kind, for a damaged file.
    """
    info = archive.getinfo(name)
    shape, fortran, dtype, header = _read_header(archive, name)
    order = "F" if fortran else "C"
    if dtype.hasobject:
        raise UserError(f"{path}: {name} holds Python objects; write an array of numbers")
    if header + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError("the file ends early")
    if info.compress_type != zipfile.ZIP_STORED:
        if info.file_size > machine_memory() // 2:
            raise UserError(f"{path}: is compressed and does not fit the memory; write it with np.savez")
        return np.ndarray(shape, dtype, archive.read(info), header, order=order)
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(_LOCAL_HEADER)
    start = info.header_offset + _LOCAL_HEADER + int.from_bytes(local[26:28], "little")
    start += int.from_bytes(local[28:30], "little") + header
    if start + math.prod(shape) * dtype.itemsize > os.path.getsize(path):
        raise ValueError("the file ends early")
    return _Mapped(path, dtype, "r", start, shape, order)


def _read_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Returns an array's shape, whether its order is Fortran's, its type, and the length of the header in bytes."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(member)
        if any(side < 0 for side in shape):
            raise ValueError(f"{name} has shape {shape}")
        return shape, fortran, dtype, member.tell()


class _Mapped(np.memmap):
    """Array that is mapped from a file; pickled by the place in the file, not by its values."""

    def __reduce__(self) -> tuple[type["_Mapped"], tuple[object, ...]]:
        order = "C" if self.flags.c_contiguous else "F"
        return _Mapped, (self.filename, self.dtype, "r", self.offset, self.shape, order)


class _File:
    """File that threads read at any position; a pickled copy opens the file again."""

    def __init__(self, path: str):
        self.path, self._descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def __reduce__(self) -> tuple[type["_File"], tuple[str]]:
        return _File, (self.path,)


def open_tar(query: Query) -> Records:
    """Opens WebDataset shards: consecutive files of one key are an example, such as 0.jpg, 0.cls, 0.txt and 0.json.

    `.cls` is a label, `.txt` a caption; `.json` may have "label" or "cls", and "text" or "caption".

    Raises:
      MissingData: no file matches.
      UserError: a shard is compressed, damaged or ends early, or examples lack an image.
    """
    shards = _files(query)
    places: dict[str, list[int]] = {kind: [] for kind in ("image", *_ANNOTATIONS)}  # of each: example, offset, bytes
    keys: list[str] = []
    first_of_shard = []  # number of the first example of each shard
    for shard in shards:
        former = None
        first_of_shard.append(len(keys))
        for name, offset, size in _members(shard):
            folder, base = os.path.split(name)
            stem, _, extension = base.partition(".")
            key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
            if key != former:
                keys.append(key)
                former = key
            kind = "image" if f".{extension}" in SUFFIXES else extension
            if kind in places:
                places[kind] += (len(keys) - 1, offset, size)
    index = {kind: _table(values, len(keys)) for kind, values in places.items()}
    shard_of = np.searchsorted(first_of_shard, np.arange(len(keys)), side="right") - 1
    with_image = np.flatnonzero(index["image"][:, 1] >= 0)
    if not len(with_image):
        raise UserError(f"data.name={query.name}: the shards have no images ({', '.join(SUFFIXES)})")
    if len(with_image) < len(keys):
        note(f"data.name={query.name}: {len(keys) - len(with_image)} of {len(keys)} keys have no image")
    files = [_File(shard) for shard in shards]

    def name_of(i: int) -> str:
        return f"{shards[shard_of[with_image[i]]]}:{keys[with_image[i]]}"

    def content(i: int, kind: str) -> bytes | None:
        size, offset = index[kind][with_image[i]].tolist()
        return None if offset < 0 else files[shard_of[with_image[i]]].read(size, offset)

    def annotation(i: int, kind: str, fields: tuple[str, ...]) -> Any:
        """Returns the label or caption of an example from its file, or from its .json; None: it has none."""
        if (text := content(i, kind)) is not None:
            return _decoded(name_of(i), text)
        if (text := content(i, "json")) is None:
            return None
        try:
            values = io.parse_json(text)
        except ValueError as error:
            raise UserError(f"{name_of(i)}.json: is damaged ({error}); write the shard again") from error
        return next((values[name] for name in fields if isinstance(values, dict) and name in values), None)

    label_of = lambda i: annotation(i, "cls", ("label", "cls"))  # noqa: E731
    caption_of = lambda i: annotation(i, "txt", ("text", "caption"))  # noqa: E731
    count = len(with_image)
    labels = [label_of(i) for i in range(count)]
    if all(label is None for label in labels):
        labels = None
    elif None in labels:
        raise UserError(f"{name_of(labels.index(None))}: has no label, but other examples do; add it")
    has_captions = caption_of(0) is not None
    num_classes, class_names, numbers = 0, (), None
    if labels is not None:
        try:
            numbers, num_classes, class_names = index_labels(labels)
        except ValueError as error:
            raise UserError(f"data.name={query.name}: {error}; correct the labels") from error

    def read(i: int) -> Record:
        caption = caption_of(i) if has_captions else None
        if has_captions and caption is None:
            raise UserError(f"{name_of(i)}: has no caption, but {name_of(0)} has one; add it")
        return Record(content(i, "image") or b"", 0 if numbers is None else int(numbers[i]), caption)

    records = Records(count, read, name_of, num_classes, class_names, numbers, "write the shard again")
    return slice_split(records, query.split)


def _table(values: list[int], count: int) -> np.ndarray:
    """Returns (size, offset) of each of `count` examples, int64 [count, 2], of triples; -1: it has none."""
    table, triples = np.full((count, 2), -1), np.array(values, np.int64).reshape(-1, 3)
    table[triples[:, 0]] = triples[:, :0:-1]
    return table


def _decoded(key: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: text is not UTF-8; write the shard again") from error


def _members(shard: str) -> list[tuple[str, int, int]]:
    """Returns the name, offset and size of each regular file of a .tar.

    Raises:
      UserError: the archive is compressed, damaged or ends early.
    """
    size, members = os.path.getsize(shard), []
    try:
        with tarfile.open(shard, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # else every member is kept
                if member.isfile():
                    if member.offset_data + member.size > size:
                        raise UserError(
                            f"{shard}: ends early, inside {member.name}; copy the shard again, or leave it out of the "
                            "pattern"
                        )
                    members.append((member.name, member.offset_data, member.size))
            _check_end(shard, archive.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        compressed = shard.endswith((".gz", ".tgz", ".xz", ".bz2", ".zst"))
        advice = "unpack it to .tar, for random access" if compressed else "copy the shard again"
        raise UserError(f"{shard}: is not a whole .tar ({str(error)[:200]}); {advice}") from error
    return members


def _check_end(shard: str, offset: int) -> None:
    """Raises UserError unless the files of a .tar end, at `offset`, with the block of zeros that marks the end."""
    with open(shard, "rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise UserError(f"{shard}: ends early, without the mark of its end; copy the shard again")
    if any(block):
        raise UserError(f"{shard}: is damaged at byte {offset:,}; copy the shard again")


def _files(query: Query) -> list[str]:
    """Returns the files of a set: a path or pattern, relative to data.dir, where {split} is the name of the split.

    Raises:
      MissingData: no file matches.
      MissingSplit: the path does not have {split}, and the split is not "train".
    """
    if "{split}" not in query.path:
        check_split(query.split, ["train"], f"data.name={query.name}, which does not contain {{split}},")
    name = split_name(query.split)

    def matches(name: str) -> list[str]:
        pattern = os.path.join(os.path.expanduser(query.directory), os.path.expanduser(query.path))
        return sorted(glob.glob(pattern.replace("{split}", name)))

    if paths := matches(name):
        return paths
    if "{split}" in query.path and (others := [other for other in SPLITS if matches(other)]):
        check_split(query.split, others, f"data.name={query.name}")
    where = f" in data.dir={query.directory}" if query.directory else ""
    raise MissingData(f"data.name={query.name}: no such file{where}; correct the path, which is relative to data.dir")
