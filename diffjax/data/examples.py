"""Examples with random access: decoded from records, with unreadable ones reported or skipped, with tokens."""

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffjax.data.cache import Cache, Example
from diffjax.data.decoding import Decoder
from diffjax.data.image_files import crop, to_pixels
from diffjax.data.records import Records
from diffjax.errors import UserError, excerpt


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to examples. It is thread-safe; the arrays of examples must not be modified."""

    length: int  # number of examples
    read: Callable[[Sequence[int]], list[Example]]  # indices -> examples; faster than one by one
    # (indices, positions [N, 2]) -> examples cropped at `image_files.crop`'s positions; None: examples have one crop
    read_crops: Callable[[Sequence[int], np.ndarray], list[Example]] | None = None
    name_of: Callable[[int], str] | None = None  # file name of an example, for messages
    remedy: str = "prepare the data set again"  # what to do about an example that cannot be read, for messages
    read_captions: Callable[[Sequence[int]], list[str]] | None = None  # indices -> captions; None: read the examples

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < self.length:
            raise IndexError(f"example {i} of {self.length}")
        return self.read([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        return self.read(indices)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Returns captions, without the images if the source can read them alone. Raises KeyError if it has none."""
        if self.read_captions is not None:
            return self.read_captions(indices)
        return [example["caption"] for example in self.read(indices)]


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Options of reading images; the fields are those of a config's `data`."""

    image_size: int  # height and width in pixels
    background: str = "white"  # colour under alpha and around padded images; "transparent": alpha is kept
    fit: str = "center_crop"  # one of `decoding.FITS`
    channels: int = 0  # 1, 3 or 4; 0: as the set has
    num_classes: int = -1  # 0: labels are ignored; -1: as the set has
    class_names: tuple[str, ...] = ()  # names of the classes that labels refer to; (): as the set has
    cache_gib: float = -1.0  # memory of decoded examples in GiB; -1: a quarter of this machine's memory
    on_corrupt: str = "raise"  # action for examples that cannot be read: "raise", or "skip"
    number: str = ""  # column of numbers that examples have as "number"; "": none


class DatasetInfo(NamedTuple):
    """Properties of a data set that models depend on."""

    channels: int
    num_classes: int  # 0: no labels
    class_names: tuple[str, ...]  # (): the classes have no names, or no labels exist


def decode_records(records: Records, info: DatasetInfo, options: ImageOptions) -> Source:
    """Returns the source of records that are decoded on access.

    Args:
      records: images before decoding.
      info: channels and classes of the examples.
      options: size, fit, background and size of the cache of decoded examples.
    """
    size, cache = options.image_size, Cache(options.cache_gib, records.length)
    decoder = Decoder(size, info.channels, options.fit, options.background)
    numbers = np.arange(max(records.num_classes, info.num_classes))
    if info.class_names and records.class_names and info.class_names != records.class_names:
        numbers = np.array([info.class_names.index(name) for name in records.class_names])
    if options.number and options.number not in records.numbers:
        known = ", ".join(sorted(records.numbers)) or "no columns of numbers"
        raise UserError(
            f"data.number={options.number}: must be a column with a number for each image; the data set has {known}"
        )
    if info.num_classes and records.labels is not None and options.on_corrupt == "raise":
        for i in np.flatnonzero((records.labels < 0) | (records.labels >= len(numbers)))[:1].tolist():
            raise _beyond_classes(records.name_of(i), int(records.labels[i]), len(numbers))

    def decode(i: int) -> Example:
        record = records.read(i)
        if info.num_classes and not 0 <= record.label < len(numbers):
            raise _beyond_classes(records.name_of(i), record.label, len(numbers))
        label = np.int32(numbers[record.label] if info.num_classes else 0)
        example: Example = {"image": decoder(record, records.name_of(i)), "label": label}
        return example if record.caption is None else {**example, "caption": record.caption}

    def read_one(i: int) -> Example:
        example = cache.get(i, decode)
        return {**example, "number": np.float32(records.numbers[options.number][i])} if options.number else example

    def read_crops(indices: Sequence[int], positions: np.ndarray) -> list[Example]:
        examples = map(read_one, indices)
        return [
            {**example, "image": crop(example["image"], size, tuple(position))}
            for example, position in zip(examples, positions, strict=True)
        ]

    if options.fit == "random_crop":
        centred = lambda indices: read_crops(indices, np.full((len(indices), 2), 0.5))  # noqa: E731
        return Source(records.length, centred, read_crops, records.name_of, records.remedy)
    read = lambda indices: [read_one(i) for i in indices]  # noqa: E731
    return Source(records.length, read, None, records.name_of, records.remedy)


def _beyond_classes(name: str, label: int, classes: int) -> UserError:
    return UserError(
        f"{name}: label {label} is not from 0 to {classes - 1}, as there are {classes} classes; correct it"
    )


def convert_images(source: Source, info: DatasetInfo, options: ImageOptions) -> Source:
    """Returns a source of decoded images with other channels, or without labels, if `options` has them."""
    if options.channels == 0 and options.num_classes != 0:
        return source

    def convert(example: Example) -> Example:
        image = Image.fromarray(example["image"].squeeze(-1) if example["image"].shape[-1] == 1 else example["image"])
        label = example["label"] if info.num_classes else np.int32(0)
        return {**example, "image": to_pixels(image, info.channels, (255, 255, 255)), "label": label}

    read = lambda indices: [convert(example) for example in source.read(indices)]  # noqa: E731
    return Source(source.length, read, read_captions=source.read_captions)


class _Lock:
    """Lock of the threads of a process; a pickled copy is another lock."""

    def __init__(self):
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["_Lock"], tuple[()]]:
        return _Lock, ()


def handle_corrupt_examples(source: Source, what: str, *, skip: bool) -> Source:
    """Returns a source that reports, or skips, examples that cannot be read.

    Args:
      source: source of the examples.
      what: data set, split and folder, for messages.
      skip: False: raise UserError. True: print one line on standard error with the number of skipped examples, and
        return the next example instead.
    """
    corrupt: dict[int, str] = {}
    lock = _Lock()  # several threads may read an example, which is printed once
    advice = source.remedy

    def report(j: int, error: Exception) -> None:
        reason = (
            excerpt(str(error), 400) if isinstance(error, UserError) else excerpt(f"{type(error).__name__}: {error}")
        )
        if source.name_of and (name := source.name_of(j)) not in reason:
            reason = f"{name}: {reason}"
        with lock:
            new = j not in corrupt
            corrupt[j] = f"example {j} of {what} cannot be read ({reason})"
            if skip and new:
                print(f"{corrupt[j]}: skipped, {len(corrupt)} of {source.length} so far", file=sys.stderr)

    def one(i: int, read: Callable[[Sequence[int]], list[Example]]) -> Example:
        for j in range(i, i + source.length):
            j %= source.length
            if j not in corrupt:
                try:
                    return read([j])[0]
                except Exception as error:  # decoders raise various exceptions
                    report(j, error)
            if not skip:
                raise UserError(f"{corrupt[j]}: {advice}, or skip it with data.on_corrupt='skip'")
        raise UserError(f"none of the {source.length} examples of {what} can be read: {advice}")

    def read(indices: Sequence[int]) -> list[Example]:
        if not corrupt:
            with contextlib.suppress(Exception):
                return source.read(indices)
        return [one(i, source.read) for i in indices]

    def read_crops(indices: Sequence[int], positions: np.ndarray) -> list[Example]:
        assert source.read_crops is not None
        crops = source.read_crops
        if not corrupt:
            with contextlib.suppress(Exception):
                return crops(indices, positions)
        return [
            one(i, lambda j, position=position: crops(j, position[None]))
            for i, position in zip(indices, positions, strict=True)
        ]

    crops = read_crops if source.read_crops else None
    return Source(source.length, read, crops, source.name_of, read_captions=source.read_captions)


def with_tokens(source: Source, encode: Callable[[Sequence[str]], np.ndarray]) -> Source:
    """Returns a source whose examples also have "tokens" int32 [L]; `encode` maps captions to tokens [N, L]."""

    def add_tokens(examples: list[Example]) -> list[Example]:
        tokens = encode([example["caption"] for example in examples])
        return [{**example, "tokens": row} for example, row in zip(examples, tokens, strict=True)]

    crops = source.read_crops
    return Source(
        source.length,
        lambda indices: add_tokens(source.read(indices)),
        None if crops is None else lambda indices, positions: add_tokens(crops(indices, positions)),
        source.name_of,
    )
