"""Stores of examples that a run has computed once, as array_record shards and `index.json`.

The examples are latents of a data set, encoded by an autoencoder, or pairs of noise and the sample that a diffusion
model makes of it. A record is one example: the arrays of `Index.arrays`, and its caption in UTF-8 if the examples have
captions. The index is written last, and has the size and SHA-256 of every shard.
"""

import contextlib
import dataclasses
import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from diffjax import io, remote
from diffjax.data.records import MissingSplit, Query, split_name, split_range
from diffjax.errors import MissingData, UserError

INDEX = "index.json"
LABEL = "label"
_SHARD_BYTES = 2**28  # bytes of records after which the next shard begins
_OPTIONS = "group_size:1,uncompressed"  # random access to single records; latents do not compress
_KINDS = {"latents": "latent", "pairs": "x0"}  # values of data.name: array that every record has
_COMMANDS = {"latents": "encode the data set with launch.py encode", "pairs": "sample pairs with launch.py pairs"}


@dataclasses.dataclass(frozen=True)
class Index:
    """The contents of a store, as in its `index.json`.

    Attributes:
      codec: autoencoder: "workdir", "step" and the "digest" of its variables; None: pairs of pixels.
      clip: CLIP of the text states, likewise; None: no text states.
      data: fields of the config's section `data` of the images, with their channels and classes.
      arrays: shapes of the arrays of a record: "label", and "latent" [h, w, c], "mirrored_latent" if images are
        mirrored, "text_states" [L, W] and "text_embedding" [D] where they are stored; or "noise" and "x0" of a pair.
      has_captions: whether records have captions.
      splits: by split, "examples", their number, and "shards": "file", "examples", "bytes" and "sha256" of each.
      run: diffusion model that sampled pairs, as `codec`; None: latents of a data set.
      sampling: flags of `launch.py pairs`; None as `run`.
    """

    codec: Mapping[str, Any] | None
    clip: Mapping[str, Any] | None
    data: Mapping[str, Any]
    arrays: Mapping[str, Sequence[int]]
    has_captions: bool
    splits: Mapping[str, Any]
    run: Mapping[str, Any] | None = None
    sampling: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """The examples, as `data.name`: "latents" or "pairs"."""
        return "pairs" if self.run else "latents"

    @property
    def has_mirrored(self) -> bool:
        """True if the mirror image of each image is encoded too."""
        return "mirrored_latent" in self.arrays


def read_index(directory: str, kind: str) -> Index:
    """Reads the index of a store.

    Args:
      directory: folder of the store.
      kind: "latents" or "pairs", the examples that it must have.

    Raises:
      MissingData: there is no store.
      UserError: the index is damaged, or the store has the other kind of examples.
    """
    command = _COMMANDS[kind]
    if not directory:
        raise MissingData(f"data.dir is not set: must be a folder of stored {kind}; {command}, then set it")
    path = Path(remote.local_data(directory)).expanduser() / INDEX
    try:
        content = io.read_json(path, f"{command} again, into a new folder")
    except (FileNotFoundError, NotADirectoryError):
        raise MissingData(
            f"data.dir={directory}: has no stored {kind} ({INDEX} is missing); {command}, or choose another folder"
        ) from None
    try:
        index = Index(**content)
        shards = [shard for split in index.splits.values() for shard in split["shards"]]
        valid = all({"file", "examples", "bytes", "sha256"} <= shard.keys() for shard in shards)
        models = [model for model in (index.codec, index.run) if model is not None]
        valid &= bool(models) and all({"workdir", "step", "digest"} <= model.keys() for model in models)
        valid &= _KINDS[index.kind] in index.arrays
        valid &= {"name", "dir", "image_size", "channels", "num_classes", "class_names"} <= index.data.keys()
        _record_type(index.arrays)
    except (TypeError, KeyError, AttributeError, ValueError):
        valid = False
    if not valid:
        raise UserError(f"{path} is damaged (it is not an index of stored {kind}): {command} again, into a new folder")
    if index.kind != kind:
        raise UserError(f"data.name={kind}: {directory} has stored {index.kind}; set data.name={index.kind}")
    return index


def write_index(folder: Path, index: Index) -> None:
    """Writes the index of a store, which completes it."""
    io.write_json(folder / INDEX, dataclasses.asdict(index))


def write_split(
    folder: Path,
    split: str,
    arrays: Mapping[str, Sequence[int]],
    batches: Iterable[tuple[Mapping[str, np.ndarray], Sequence[str] | None]],
) -> dict[str, Any]:
    """Writes the shards of a split.

    Args:
      folder: folder of the store.
      split: name of the split, or a slice.
      arrays: shapes of the arrays of a record, by name.
      batches: for consecutive examples, the arrays [N, ...] by name, and their captions, or None.

    Returns:
      The value of `Index.splits` for the split.
    """
    record_type, shards = _record_type(arrays), []
    records = _records_to_write(record_type, batches)
    record = next(records, None)
    while record is not None:
        path = folder / f"{quote(split, safe='')}-{len(shards):05d}.array_record"
        examples, size = 0, 0
        with _writer(path) as write:
            while record is not None and (size + len(record) <= _SHARD_BYTES or not examples):
                write(record)
                examples, size = examples + 1, size + len(record)
                record = next(records, None)
        bytes_on_disk, digest = path.stat().st_size, io.file_hash(path)
        shards.append({"file": path.name, "examples": examples, "bytes": bytes_on_disk, "sha256": digest})
    return {"examples": sum(shard["examples"] for shard in shards), "shards": shards}


def _records_to_write(
    record_type: np.dtype, batches: Iterable[tuple[Mapping[str, np.ndarray], Sequence[str] | None]]
) -> Iterator[bytes]:
    for values, captions in batches:
        rows = np.empty(len(values[LABEL]), record_type)
        for name in record_type.names or ():
            rows[name] = values[name]
        for i, row in enumerate(rows):
            yield row.tobytes() + (captions[i].encode() if captions else b"")


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """Yields a function that appends a record to a shard. Raises OSError if the disk is full."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), _OPTIONS)

    def unless_full(write: Callable[..., Any], *arguments: Any) -> None:
        try:
            write(*arguments)
        except RuntimeError as error:
            raise OSError(errno.ENOSPC, str(error), str(path)) from error

    try:
        yield lambda record: unless_full(writer.write, record)
    except BaseException:
        with contextlib.suppress(RuntimeError):
            writer.close()
        raise
    unless_full(writer.close)


@dataclasses.dataclass(frozen=True)
class StoredExamples:
    """Random access to a split of a store, or a slice of one. It is thread-safe."""

    directory: str
    index: Index
    split: str

    def __post_init__(self):
        self._stored_split()

    @property
    def positions(self) -> range:
        """Positions of the examples in the stored split."""
        stored = self._stored_split()
        examples = self.index.splits[stored]["examples"]
        return range(examples) if stored == self.split else split_range(examples, self.split)

    def _stored_split(self) -> str:
        """Returns the split of the store that has the examples. Raises MissingSplit if no split has them."""
        if self.split in self.index.splits:
            return self.split
        if (whole := split_name(self.split)) in self.index.splits:
            return whole
        raise MissingSplit(
            f"data.split={self.split}: {self.directory} has {', '.join(self.index.splits)}; choose one of them, or "
            f"{_COMMANDS[self.index.kind]}{f' and --split={self.split}' * (self.index.kind == 'latents')}"
        )

    @property
    def _remedy(self) -> str:
        return f"{_COMMANDS[self.index.kind]} again, into a new folder"

    def check_sizes(self) -> None:
        """Raises UserError if a shard is missing, or does not have the size that the index has."""
        for shard in self.shards:
            path = self.path(shard)
            if not path.is_file():
                raise UserError(f"{path}: is missing, so the stored {self.index.kind} are incomplete; {self._remedy}")
            if (size := path.stat().st_size) != shard["bytes"]:
                raise UserError(f"{path}: has {size:,} bytes instead of {shard['bytes']:,}; {self._remedy}")

    def check_content(self) -> None:
        """Raises UserError if the SHA-256 of a shard is not that of the index. Reads the whole split."""
        self.check_sizes()
        for shard in self.shards:
            if io.file_hash(self.path(shard)) != shard["sha256"]:
                raise UserError(f"{self.path(shard)}: is damaged (its SHA-256 differs); {self._remedy}")

    @property
    def shards(self) -> Sequence[Mapping[str, Any]]:
        """The shards of the split, as in the index."""
        return self.index.splits[self._stored_split()]["shards"]

    def path(self, shard: Mapping[str, Any]) -> Path:
        """Returns the path of a shard."""
        return Path(self.directory).expanduser() / os.path.basename(shard["file"])

    @property
    def length(self) -> int:
        """Number of examples."""
        return len(self.positions)

    @functools.cached_property
    def _records(self) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource([str(self.path(shard)) for shard in self.shards])

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns examples: the arrays of records by name, "caption" where the store has captions.

        Raises:
          ValueError, RuntimeError: a record is damaged.
        """
        record_type, examples = _record_type(self.index.arrays), []
        positions = self.positions
        for record in self._records.__getitems__([positions[i] for i in indices]):
            row = np.frombuffer(record, record_type, count=1)[0]
            example: dict[str, Any] = {name: row[name] for name in self.index.arrays}
            if self.index.has_captions:
                example["caption"] = record[record_type.itemsize :].decode()
            examples.append(example)
        return examples


def open_store(query: Query) -> StoredExamples:
    """Opens a split of the store in `query.directory`, or a slice of one.

    Raises:
      MissingData: there is no store.
      UserError: it has no such split, or is incomplete.
    """
    directory = remote.local_data(query.directory)
    examples = StoredExamples(directory, read_index(directory, query.name), query.split)
    examples.check_sizes()
    return examples


def _record_type(arrays: Mapping[str, Sequence[int]]) -> np.dtype:
    return np.dtype([(name, "<i4" if name == LABEL else "<f4", tuple(shape)) for name, shape in arrays.items()])
