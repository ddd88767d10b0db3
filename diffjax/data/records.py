"""Image sets before decoding: records with random access, and the parts of a split."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffjax.errors import UserError

_SPLIT = re.compile(r"(\w+)(?:\[(?:(-?\d+)(%?))?:(?:(-?\d+)(%?))?\])?")
SET_DIRECTORY = "set --config.data.dir, or --data_dir for a trained run"  # what to do without data.dir
_MAX_CLASSES = 1_000_000  # labels are numbers of classes from 0; others, such as dates, are mistakes


class Query(NamedTuple):
    """Fields of a config that select a split of a data set."""

    name: str  # data.name
    path: str  # data.name without its prefix
    directory: str  # data.dir
    split: str  # data.split


class Record(NamedTuple):
    """An image that is not decoded, with its annotations."""

    image: bytes | np.ndarray  # content of an image file, or pixels as `image_files.array_to_uint8` accepts them
    label: int = 0
    caption: str | None = None


@dataclasses.dataclass(frozen=True)
class Records:
    """A split of an image set. Functions are thread-safe."""

    length: int
    read: Callable[[int], Record]
    name_of: Callable[[int], str]  # file name, or place in a file, for messages
    num_classes: int = 0  # 0: no labels
    class_names: tuple[str, ...] = ()  # (): classes have no names
    labels: np.ndarray | None = None  # int [length], if they are known without reading
    remedy: str = "replace or delete the file"  # what to do about a record that cannot be read, for messages
    numbers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # columns of numbers [length], by name


def select(records: Records, indices: Sequence[int] | np.ndarray) -> Records:
    """Returns the records at `indices`."""
    indices = np.asarray(indices, np.int64)
    return dataclasses.replace(
        records,
        length=len(indices),
        read=lambda i: records.read(int(indices[i])),
        name_of=lambda i: records.name_of(int(indices[i])),
        labels=None if records.labels is None else records.labels[indices],
        numbers={name: values[indices] for name, values in records.numbers.items()},
    )


def split_name(split: str) -> str:
    """Returns the name of a split without its slice: "train" of "train[:90%]".

    Raises:
      UserError: the text is not a split.
    """
    return _parse(split)[1]


def split_range(length: int, split: str) -> range:
    """Returns the positions that a slice such as "train[:90%]" names, of a split with `length` examples.

    Raises:
      UserError: the slice is empty.
    """
    match = _parse(split)

    def position(number: str | None, percent: str, default: int) -> int:
        if number is None:
            return default
        value = round(int(number) * length / 100) if percent else int(number)
        return min(max(value + length * (value < 0), 0), length)

    start, end = position(match[2], match[3], 0), position(match[4], match[5], length)
    if start >= end:
        raise UserError(f"data.split={split}: has no examples, as the split has {length}; choose another part")
    return range(start, end)


def slice_split(records: Records, split: str) -> Records:
    """Returns the part of a whole split that a slice such as "train[:90%]", "train[90%:]" or "train[:1000]" names.

    Percentages are rounded to the nearest number of examples, so that consecutive parts neither overlap nor leave gaps.

    Raises:
      UserError: the slice is empty.
    """
    positions = split_range(records.length, split)
    return records if len(positions) == records.length else select(records, positions)


def complement(split: str) -> str | None:
    """Returns the rest of a split, "train[90%:]" of "train[:90%]" and the reverse; None: it is not such a slice."""
    match = _parse(split)
    bounds = [f"{match[i]}{match[i + 1]}" if match[i] else "" for i in (2, 4)]
    if all(bounds) or not any(bounds) or "0" in bounds or "100%" in bounds:
        return None
    return f"{match[1]}[{bounds[1]}:{bounds[0]}]"


def check_split(split: str, splits: Iterable[str], name: str) -> str:
    """Returns the name of a split without its slice. Raises MissingSplit if it is not among the `splits` of a set."""
    base = split_name(split)
    if base not in (choices := list(splits)):
        part = choices[0] if choices else "train"
        raise MissingSplit(
            f"data.split={split}: {name} has no split {base!r}; choose from {', '.join(choices)}, or a part such as "
            f"{part}[90%:]"
        )
    return base


class MissingSplit(UserError):
    """A split that a data set does not have."""


def index_labels(values: Sequence[object]) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Returns labels [N] as int32, the number of classes and their names, of whole numbers or of names.

    Raises:
      ValueError: numbers are negative, not whole or above a million, or there are both numbers and names.
    """
    if all(isinstance(value, str) for value in values) and not all(str(value).isdecimal() for value in values):
        names = tuple(sorted({str(value) for value in values}))
        numbers = {name: i for i, name in enumerate(names)}
        return np.array([numbers[str(value)] for value in values], np.int32), len(names), names
    try:
        labels = np.array([_whole(value) for value in values], np.int64)
    except (ValueError, OverflowError):
        raise ValueError("labels must be all whole numbers, or all names") from None
    if len(labels) and (labels.min() < 0 or labels.max() >= _MAX_CLASSES):
        label = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"label {label} is not from 0 to {_MAX_CLASSES - 1:,}")
    return labels.astype(np.int32), int(labels.max(initial=-1)) + 1, ()


def _whole(value: object) -> int:
    """Returns a whole number, also of text or floating point. Raises ValueError or OverflowError for other values."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(str(value))


def _parse(split: str) -> re.Match[str]:
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise UserError(f"data.split={split}: is not a split; write a name, or a part such as train[:90%]")
    return match
