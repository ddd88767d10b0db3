"""The data sets by name: what is known of each without opening it, and random access to its examples.

| name | native size | channels | classes | comes from |
|---|---|---|---|---|
| digits | 8 | 1 | 10 | scikit-learn, bundled |
| fashion_mnist, cifar10 | 28, 32 | 1, 3 | 10 | tensorflow-datasets, prepared on disk as array_record |
| emoji | 32 and 64 | 3 on white, 4 transparent | 10 | `diffjax.data.emoji`, prepared on disk as array_record |
| shapes | any | 3 | 5 | `diffjax.data.shapes`, drawn on the fly |
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
from diffjax.errors import MissingData, UserError, checked_whole, excerpt, unknown
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
_LARGEST = 8192  # side of a picture
_SHAPES_LENGTH = {"train": 1_000_000, "test": 10_000}  # scenes called an epoch; there are more


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to examples. Threads may share one; the arrays in its examples are not to be written to."""

    length: int
    read: Callable[[Sequence[int]], list[Example]]  # in one go, which is quicker than one by one

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < self.length:
            raise IndexError(f"example {i} of {self.length}")
        return self.read([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        return self.read(indices)


def class_names(name: str) -> tuple[str, ...]:
    """What the labels 0, 1, ... of a data set mean.

    Raises:
      UserError: an unknown data set.
    """
    if name not in CLASSES:
        raise unknown("data set, data.name", name, CLASSES)
    return CLASSES[name]


def spec(name: str, image_size: int, background: str = "white") -> ImageSpec:
    """What a system must know of a data set; touches no disk.

    Raises:
      UserError: an unknown data set or background, a size below 1, or a transparent background for a set without one.
    """
    classes = len(class_names(name))
    if background not in _BACKGROUNDS:
        raise unknown("background", background, _BACKGROUNDS)
    if background == "transparent" and name != "emoji":
        raise UserError(f"{name} has no transparent background: use background 'white', or the data set emoji")
    checked_whole("data.image_size", image_size, high=_LARGEST)
    return ImageSpec(image_size, 4 if background == "transparent" else _CHANNELS[name], classes)


def open_source(
    name: str, *, directory: str, split: str, image_size: int, background: str = "white", corrupt: str = "raise"
) -> Source:
    """Opens a split of a data set, its images resized to [image_size, image_size] if they are not (see `resize`).

    Args:
      directory: where prepared data sets lie (tensorflow-datasets' `data_dir`); "" for digits and shapes.
      split: "train" or "test"; of a prepared set also a part, such as "train[:1000]" or "train[90%:]".
      background: what shows through an emoji: "white", or "transparent" for RGBA (colour 0 where alpha is 0).
      corrupt: what to do about an example that cannot be read: "raise", or "skip", which prints its index and how many
        were skipped so far on standard error, and returns the next one in its place.

    Returns:
      A `Source` of {"image": uint8 [H, W, C], "label": int32 []}, and "caption": str for emoji and shapes.
      A prepared set's examples are decoded once and kept in memory (CIFAR-10 train: about 200 MB).

    Raises:
      UserError: what `spec` raises; an unknown split or `corrupt`; later, when it is read, an example that cannot be.
      MissingData: a set that is not prepared, with the command that prepares it.
    """
    spec(name, image_size, background)
    if corrupt not in _CORRUPT:
        raise unknown("data.corrupt", corrupt, _CORRUPT)
    if name == "digits":
        source = _digits(split, image_size)
    elif name == "shapes":
        source = _shapes(split, image_size)
    else:
        source = _prepared(name, directory, split, image_size, background)
    where = f" in {directory}" if directory and name not in ("digits", "shapes") else ""
    return guarded(source, f"{name} {split}{where}", skip=corrupt == "skip")


def guarded(source: Source, what: str, *, skip: bool) -> Source:
    """Returns a source that names an example that cannot be read, `what` included.

    Args:
      source: the source to read.
      what: data set, split and folder, for messages.
      skip: False: raise UserError. True: print one line on standard error, which counts the examples skipped so far,
        and return the next example in its place.
    """
    corrupt: dict[int, str] = {}
    lock = threading.Lock()  # each example is printed once, though several threads may read it

    def one(i: int) -> Example:
        for j in range(i, i + source.length):
            j %= source.length
            if j not in corrupt:
                try:
                    return source.read([j])[0]
                except Exception as error:  # of whatever decodes it
                    reason = excerpt(f"{type(error).__name__}: {error}")
                    with lock:
                        new = j not in corrupt
                        corrupt[j] = f"example {j} of {what} cannot be read ({reason})"
                        if skip and new:
                            print(f"{corrupt[j]}: skipped, {len(corrupt)} of {source.length} so far", file=sys.stderr)
            if not skip:
                raise UserError(f"{corrupt[j]}: prepare the data set again, or skip it with data.corrupt='skip'")
        raise UserError(f"none of the {source.length} examples of {what} can be read: prepare the data set again")

    def read(indices: Sequence[int]) -> list[Example]:
        if not corrupt:
            with contextlib.suppress(Exception):
                return source.read(indices)
        return [one(i) for i in indices]

    return Source(source.length, read)


def tokenized(source: Source, encode: Callable[[Sequence[str]], np.ndarray]) -> Source:
    """A source whose examples also have "tokens" int32 [L], which `encode` makes of many captions at once."""

    def read(indices: Sequence[int]) -> list[Example]:
        examples = source.read(indices)
        tokens = encode([example["caption"] for example in examples])
        return [{**example, "tokens": own} for example, own in zip(examples, tokens, strict=True)]

    return Source(source.length, read)


def preparation(name: str, directory: str | None, image_size: int = 64) -> str | None:
    """The command that prepares a data set, None where nothing is needed."""
    directory = directory or "DIR"
    if name == "emoji":
        size = _emoji_size(image_size)
        return f"python -m diffjax.data.prepare emoji --manual_dir=PACKAGES --data_dir={directory} --image_size={size}"
    if name in ("digits", "shapes"):
        return None
    return f"pip install tensorflow && tfds build {name} --file_format=array_record --data_dir={directory}"


def _emoji_size(image_size: int) -> int:
    """The prepared size that is read for `image_size`."""
    return 32 if image_size <= 32 else 64


def _digits(split: str, image_size: int) -> Source:
    """1,797 digits, of which every fifth in the order of the labels is "test": 1,437 and 360, classes alike in both."""
    from sklearn import datasets

    if split not in ("train", "test"):
        raise unknown("split of digits", split, ("train", "test"))
    bunch = datasets.load_digits()
    held = np.zeros(len(bunch.target), bool)
    held[np.argsort(bunch.target, kind="stable")[::5]] = True
    chosen = held if split == "test" else ~held
    images = np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]  # 0 ... 16 before
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
        return {"image": shapes.draw(scene, image_size), "label": label, "caption": shapes.caption(scene)}

    return Source(_SHAPES_LENGTH[split], lambda indices: [example(i) for i in indices])


def _prepared(name: str, directory: str | None, split: str, image_size: int, background: str) -> Source:
    how = f"prepare it with `{preparation(name, directory, image_size)}`"
    if not directory:
        raise MissingData(f"{name} is read from disk and no directory is set: {how}, then set --config.data.dir")
    import tensorflow_datasets as tfds

    root = tfds.core.Path(directory).expanduser() / name / (str(_emoji_size(image_size)) if name == "emoji" else "")
    prepared = [path.parent for path in root.glob("*/dataset_info.json")]
    versions = [path for path in prepared if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]  # not an unfinished one's
    if not versions:
        raise MissingData(f"{name} is not prepared in {directory}: {how}")
    folder = max(versions, key=lambda path: tfds.core.Version(path.name))
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # its JSON files can be damaged in any way
        reason = excerpt(f"{type(error).__name__}: {error}")
        raise UserError(f"{folder} is damaged ({reason}): delete it and {how}") from error
    try:
        data = builder.as_data_source(split=split)
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
            raise ValueError(f"it has {image.shape[-1]} channels and label {label}, which {name} does not have")
        image = resize(image, image_size)
        if name == "emoji" and background == "white":
            image = on_white(image)
        example = {"image": image, "label": np.int32(label)}
        if "caption" in record:
            example["caption"] = record["caption"].decode()
        return example

    kept: dict[int, Example] = {}

    def read(indices: Sequence[int]) -> list[Example]:
        new = [i for i in indices if i not in kept]
        kept.update(zip(new, map(decode, data.__getitems__(new)), strict=True))
        return [kept[i] for i in indices]

    return Source(len(data), read)
