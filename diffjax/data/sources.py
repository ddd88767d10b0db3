"""Data sets by name: properties that are known without opening them, and random access to examples.

| name | native size | channels | classes | source |
|---|---|---|---|---|
| digits | 8 | 1 | 10 | scikit-learn, bundled |
| fashion_mnist, cifar10 | 28, 32 | 1, 3 | 10 | tensorflow-datasets, prepared on disk as array_record |
| emoji | 32 and 64 | 3 on white, 4 transparent | 10 | `diffjax.data.emoji`, prepared on disk as array_record |
| shapes | any | 3 | 5 | `diffjax.data.shapes`, rendered on access |
"""

import contextlib
import dataclasses
import re
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffjax.data import shapes
from diffjax.data.image_files import on_white, resize
from diffjax.errors import MissingData, UserError, excerpt, unknown, validate_integer
from diffjax.typing import ImageSpec

Example = dict[str, Any]  # "image" uint8 [H, W, C], "label" int32 [], "caption" str where the set has one

CLASSES = {
    "digits": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "emoji": (
        "Smileys & Emotion",
        "People & Body",
        "Animals & Nature",
        "Food & Drink",
        "Travel & Places",
        "Activities",
        "Objects",
        "Symbols",
        "Flags",
        "Component",
    ),  # Unicode's groups
    "shapes": shapes.SHAPES,  # the shape of a scene's first object
}
_CHANNELS = {"digits": 1, "fashion_mnist": 1, "cifar10": 3, "emoji": 3, "shapes": 3}
_BACKGROUNDS = ("white", "transparent")
_CORRUPT = ("raise", "skip")
_MAX_SIDE = 8192  # pixels
_SHAPES_LENGTH = {"train": 1_000_000, "test": 10_000}  # scenes per epoch; the data set is unlimited


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to examples. It is thread-safe; the arrays of examples must not be modified."""

    length: int  # number of examples
    read: Callable[[Sequence[int]], list[Example]]  # indices -> examples; faster than one by one

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < self.length:
            raise IndexError(f"example {i} of {self.length}")
        return self.read([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        return self.read(indices)


def class_names(name: str) -> tuple[str, ...]:
    """Returns the names of the classes 0, 1, ... of a data set.

    Raises:
      UserError: an unknown data set.
    """
    if name not in CLASSES:
        raise unknown("data set, data.name", name, CLASSES)
    return CLASSES[name]


def image_spec(name: str, image_size: int, background: str = "white") -> ImageSpec:
    """Returns image size, channels and number of classes of a data set, without reading it.

    Args:
      name: name of the data set.
      image_size: height and width in pixels.
      background: "white", or "transparent" for emoji with alpha.

    Raises:
      UserError: an unknown data set or background, a size below 1, or a transparent background for a set without one.
    """
    classes = len(class_names(name))
    if background not in _BACKGROUNDS:
        raise unknown("background", background, _BACKGROUNDS)
    if background == "transparent" and name != "emoji":
        raise UserError(
            f"data.background=transparent: {name} has no transparent background; use white, or the data set emoji"
        )
    validate_integer("data.image_size", image_size, high=_MAX_SIDE)
    return ImageSpec(image_size, 4 if background == "transparent" else _CHANNELS[name], classes)


def open_dataset(
    name: str, *, directory: str, split: str, image_size: int, background: str = "white", on_corrupt: str = "raise"
) -> Source:
    """Opens a split of a data set, with images resized to [image_size, image_size] (see `image_files.resize`).

    Args:
      name: name of the data set.
      directory: folder of prepared data sets (tensorflow-datasets' `data_dir`); "" for digits and shapes.
      split: "train" or "test"; for prepared data sets also a part, such as "train[:1000]" or "train[90%:]".
      image_size: height and width in pixels.
      background: background of emoji: "white", or "transparent" for RGBA (colour 0 where alpha is 0).
      on_corrupt: action for examples that cannot be read: "raise", or "skip", which prints the index and the number of
        skipped examples on standard error, and returns the next example instead.

    Returns:
      Source of {"image": uint8 [H, W, C], "label": int32 []}, with "caption": str for emoji and shapes. Examples of
      prepared data sets are decoded once and stay in memory (CIFAR-10 train: about 200 MB).

    Raises:
      UserError: the errors of `image_spec`, an unknown split or `on_corrupt`; on access, an unreadable example.
      MissingData: the data set is not prepared; the message has the command that prepares it.
    """
    image_spec(name, image_size, background)
    if on_corrupt not in _CORRUPT:
        raise unknown("data.on_corrupt", on_corrupt, _CORRUPT)
    if name == "digits":
        source = _digits(split, image_size)
    elif name == "shapes":
        source = _shapes(split, image_size)
    else:
        source = _prepared(name, directory, split, image_size, background)
    where = f" in {directory}" if directory and name not in ("digits", "shapes") else ""
    return handle_corrupt_examples(source, f"{name} {split}{where}", skip=on_corrupt == "skip")


def handle_corrupt_examples(source: Source, what: str, *, skip: bool) -> Source:
    """Returns a source that reports, or skips, examples that cannot be read.

    Args:
      source: source of the examples.
      what: data set, split and folder, for messages.
      skip: False: raise UserError. True: print one line on standard error with the number of skipped examples, and
        return the next example instead.
    """
    corrupt: dict[int, str] = {}
    lock = threading.Lock()  # several threads may read an example, which is printed once

    def one(i: int) -> Example:
        for j in range(i, i + source.length):
            j %= source.length
            if j not in corrupt:
                try:
                    return source.read([j])[0]
                except Exception as error:  # decoders raise various exceptions
                    reason = excerpt(f"{type(error).__name__}: {error}")
                    with lock:
                        new = j not in corrupt
                        corrupt[j] = f"example {j} of {what} cannot be read ({reason})"
                        if skip and new:
                            print(f"{corrupt[j]}: skipped, {len(corrupt)} of {source.length} so far", file=sys.stderr)
            if not skip:
                raise UserError(f"{corrupt[j]}: prepare the data set again, or skip it with data.on_corrupt='skip'")
        raise UserError(f"none of the {source.length} examples of {what} can be read: prepare the data set again")

    def read(indices: Sequence[int]) -> list[Example]:
        if not corrupt:
            with contextlib.suppress(Exception):
                return source.read(indices)
        return [one(i) for i in indices]

    return Source(source.length, read)


def with_tokens(source: Source, encode: Callable[[Sequence[str]], np.ndarray]) -> Source:
    """Returns a source whose examples also have "tokens" int32 [L]; `encode` maps captions to tokens [N, L]."""

    def read(indices: Sequence[int]) -> list[Example]:
        examples = source.read(indices)
        tokens = encode([example["caption"] for example in examples])
        return [{**example, "tokens": row} for example, row in zip(examples, tokens, strict=True)]

    return Source(source.length, read)


def preparation_command(name: str, directory: str | None, image_size: int = 64) -> str | None:
    """Returns the command that prepares a data set, or None if it needs no preparation."""
    directory = directory or "DIR"
    if name == "emoji":
        size = _emoji_size(image_size)
        return f"python -m diffjax.data.prepare emoji --manual_dir=PACKAGES --data_dir={directory} --image_size={size}"
    if name in ("digits", "shapes"):
        return None
    return f"pip install tensorflow && tfds build {name} --file_format=array_record --data_dir={directory}"


def _emoji_size(image_size: int) -> int:
    """Returns the prepared size of emoji for `image_size`."""
    return 32 if image_size <= 32 else 64


def _digits(split: str, image_size: int) -> Source:
    """Opens 1,797 digits; every fifth in the order of labels is in "test": 1,437 and 360, with equal classes."""
    from sklearn import datasets

    if split not in ("train", "test"):
        raise unknown("split of digits", split, ("train", "test"))
    bunch: Any = datasets.load_digits()
    test = np.zeros(len(bunch.target), bool)
    test[np.argsort(bunch.target, kind="stable")[::5]] = True
    chosen = test if split == "test" else ~test
    images = np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]  # originally 0 to 16
    examples = [
        {"image": resize(image, image_size), "label": label}
        for image, label in zip(images, bunch.target[chosen].astype(np.int32), strict=True)
    ]
    return Source(len(examples), lambda indices: [examples[i] for i in indices])


def _shapes(split: str, image_size: int) -> Source:
    if split not in shapes.SPLITS:
        raise unknown("split of shapes", split, shapes.SPLITS)

    def example(i: int) -> Example:
        scene = shapes.scene(split, i)
        label = np.int32(shapes.SHAPES.index(scene.objects[0].shape))
        return {"image": shapes.render(scene, image_size), "label": label, "caption": shapes.caption(scene)}

    return Source(_SHAPES_LENGTH[split], lambda indices: [example(i) for i in indices])


def _prepared(name: str, directory: str | None, split: str, image_size: int, background: str) -> Source:
    how = f"prepare it with `{preparation_command(name, directory, image_size)}`"
    if not directory:
        raise MissingData(f"data.dir is not set: {name} is read from disk; {how}, then set --config.data.dir")
    import tensorflow_datasets as tfds

    root = tfds.core.Path(directory).expanduser() / name / (str(_emoji_size(image_size)) if name == "emoji" else "")
    prepared = [path.parent for path in root.glob("*/dataset_info.json")]
    versions = [
        path for path in prepared if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    ]  # excludes incomplete preparations
    if not versions:
        raise MissingData(f"{name} is not prepared in {directory}: {how}")
    folder = max(versions, key=lambda path: tfds.core.Version(path.name))
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # damaged JSON files raise various exceptions
        reason = excerpt(f"{type(error).__name__}: {error}")
        raise UserError(f"{folder} is damaged ({reason}): delete it and {how}") from error
    try:
        data: Any = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
    except NotImplementedError:
        raise UserError(f"{name} in {directory} is not in the array_record format: {how}") from None
    except ValueError:
        raise UserError(
            f"{name} has no split {split!r}, or it is empty: choose from {', '.join(sorted(builder.info.splits))} "
            "or a part such as 'train[:1000]'"
        ) from None
    channels, classes = 4 if name == "emoji" else _CHANNELS[name], len(CLASSES[name])

    def decode(record: Example) -> Example:
        image, label = record["image"], record["label" if "label" in record else "group"]
        if image.shape[-1] != channels or not 0 <= label < classes:
            raise ValueError(f"{image.shape[-1]} channels and label {label} do not exist in {name}")
        image = resize(image, image_size)
        if name == "emoji" and background == "white":
            image = on_white(image)
        example = {"image": image, "label": np.int32(label)}
        if "caption" in record:
            example["caption"] = record["caption"].decode()
        return example

    decoded: dict[int, Example] = {}

    def read(indices: Sequence[int]) -> list[Example]:
        new = [i for i in indices if i not in decoded]
        decoded.update(zip(new, map(decode, data.__getitems__(new)), strict=True))
        return [decoded[i] for i in indices]

    return Source(len(data), read)
