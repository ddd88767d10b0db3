"""Data sets by name: the table of all sources (`OPENERS`), and their properties.

| name | native size | channels | classes | source |
|---|---|---|---|---|
| digits | 8 | 1 | 10 | scikit-learn, bundled |
| fashion_mnist, cifar10 | 28, 32 | 1, 3 | 10 | tensorflow-datasets, prepared on disk as array_record |
| emoji | 32 and 64 | 3 on white, 4 transparent | 10 | `diffjax.data.emoji`, prepared on disk as array_record |
| shapes | any | 3 | 5 | `diffjax.data.shapes`, rendered on access |
| folder | any | any | any | image files in `data.dir`, `diffjax.data.folder` |
| npz:FILE, tar:PATTERN | any | any | any | arrays, WebDataset shards, `diffjax.data.archives` |
| tfds:NAME, hf:NAME | any | any | any | tensorflow-datasets, Hugging Face, `diffjax.data.dataset_libraries` |
| latents | any | any | any | images that an autoencoder has encoded, `diffjax.data.latents_store` |
| pairs | any | any | any | noise and the samples that a diffusion model makes of it, `diffjax.data.latents_store` |
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from diffjax import remote
from diffjax.data import shapes
from diffjax.data.archives import open_npz, open_tar
from diffjax.data.cache import Cache, Example
from diffjax.data.dataset_libraries import open_builder, open_hf, open_split, open_tfds, prepared_folder
from diffjax.data.decoding import CHANNELS, check_fit, infer_channels, parse_colour
from diffjax.data.examples import (
    DatasetInfo,
    ImageOptions,
    Source,
    convert_images,
    decode_records,
    handle_corrupt_examples,
)
from diffjax.data.folder import open_folder
from diffjax.data.image_files import on_white, resize
from diffjax.data.latents_store import StoredExamples, open_store
from diffjax.data.records import SET_DIRECTORY, Query, Records
from diffjax.errors import MissingData, UserError, unknown, validate_integer
from diffjax.typing import ImageSpec

T = TypeVar("T")

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
OpenedSets = dict[Query, Records]  # sets that are not built in, so that a command opens each of them once
_CHANNELS = {"digits": 1, "fashion_mnist": 1, "cifar10": 3, "emoji": 3, "shapes": 3}
_BACKGROUNDS = ("white", "transparent")
_CORRUPT = ("raise", "skip")
_MAX_SIDE = 8192  # pixels
_SHAPES_LENGTH = {"train": 1_000_000, "test": 10_000}  # scenes per epoch; the data set is unlimited


def class_names(name: str) -> tuple[str, ...]:
    """Returns the names of the classes 0, 1, ... of a built-in data set.

    Raises:
      UserError: an unknown data set.
    """
    if name not in CLASSES:
        raise unknown("data set, data.name", name, CLASSES)
    return CLASSES[name]


def is_built_in(name: str) -> bool:
    """Returns whether the properties of a data set are known without opening it.

    Raises:
      UserError: an unknown data set.
    """
    _opener(name)
    return name in CLASSES


def image_spec(name: str, image_size: int, background: str = "white") -> ImageSpec:
    """Returns image size, channels and number of classes of a built-in data set, without reading it.

    Args:
      name: name of the data set.
      image_size: height and width in pixels.
      background: "white", or "transparent" for emoji with alpha.

    Raises:
      UserError: an unknown data set or background, a size below 1, or a transparent background for a set without one.
    """
    info = dataset_info(name, directory="", split="train", options=ImageOptions(image_size, background))
    return ImageSpec(image_size, info.channels, info.num_classes)


def dataset_info(
    name: str, *, directory: str, split: str, options: ImageOptions, opened: OpenedSets | None = None
) -> DatasetInfo:
    """Returns the channels and classes of a data set, with those of `options` in their place.

    Args:
      name: name of the data set.
      directory: folder of data sets.
      split: split that is opened, for sets that are not built in.
      options: options; channels and classes that it has are not read from the set.
      opened: sets that need not be opened again; this one is added. None: no others.

    Raises:
      UserError: an unknown data set or background, a size below 1, or the errors of opening the set.
    """
    _check(name, options)
    if is_built_in(name):
        channels = 4 if options.background == "transparent" else _CHANNELS[name]
        return _info(name, options, channels, len(CLASSES[name]), CLASSES[name])
    if options.channels and options.num_classes >= 0:
        return DatasetInfo(options.channels, options.num_classes, options.class_names)
    data = _open(_query(name, directory, split), options, opened)
    if isinstance(data, StoredExamples):
        return _stored_info(name, data, options)
    assert isinstance(data, Records)
    return _records_info(name, data, options)


def open_dataset(
    name: str,
    *,
    directory: str,
    split: str,
    image_size: int = 0,
    background: str = "white",
    on_corrupt: str = "raise",
    options: ImageOptions | None = None,
    opened: OpenedSets | None = None,
) -> Source:
    """Opens a split of a data set, with images of [image_size, image_size] (see `image_files.resize`).

    Args:
      name: name of the data set, in `OPENERS`, with what follows its prefix.
      directory: folder of prepared data sets or images; paths in `name` are relative to it. "" for digits and shapes.
      split: "train" or "test"; for sets on disk also a part, such as "train[:1000]" or "train[90%:]".
      image_size: height and width in pixels.
      background: background of emoji: "white", or "transparent" for RGBA (colour 0 where alpha is 0).
      on_corrupt: action for examples that cannot be read: "raise", or "skip", which prints the index and the number of
        skipped examples on standard error, and returns the next example instead.
      options: all options, instead of the three above.
      opened: as for `dataset_info`.

    Returns:
      Source of {"image": uint8 [H, W, C], "label": int32 []}, with "caption": str where the set has captions, and
      with the option `number` "number": float32 []; labels are 0 where it has none. Decoded examples of sets on disk
      stay in memory up to `cache_gib`. Examples of "latents" have "latent": float32 [h, w, c] instead of an image, and
      those of "pairs" have "noise" and "x0" of this type (see `latents_store.Index`).

    Raises:
      UserError: the errors of `dataset_info`, an unknown split or `on_corrupt`, or labels beyond the classes; on
        access, an unreadable example.
      MissingData: the data set does not exist; the message has the command that prepares it, if there is one.
    """
    options = options or ImageOptions(image_size, background, on_corrupt=on_corrupt)
    _check(name, options)
    if options.on_corrupt not in _CORRUPT:
        raise unknown("data.on_corrupt", options.on_corrupt, _CORRUPT)
    data = _open(_query(name, directory, split), options, opened)
    if isinstance(data, Records):
        source = decode_records(data, _records_info(name, data, options), options)
    elif isinstance(data, StoredExamples):
        _stored_info(name, data, options)  # reports options that do not fit
        source = Source(data.length, data.read)
    elif options.number:
        raise UserError(f"data.number={options.number}: {name} has no columns of numbers; use a folder or npz:FILE")
    else:
        source = convert_images(data, dataset_info(name, directory="", split=split, options=options), options)
    where = f" in {directory}" if directory and name not in ("digits", "shapes") else ""
    return handle_corrupt_examples(source, f"{name} {split}{where}", skip=options.on_corrupt == "skip")


def _query(name: str, directory: str, split: str) -> Query:
    """Returns the query for a split; a folder at a URL is replaced by its local copy."""
    prefix, _, path = name.partition(":")
    if name not in ("digits", "shapes"):
        below = path if prefix == "tfds" else name if name in CLASSES else ""  # a folder of tensorflow-datasets
        directory = remote.local_data(directory or "", below)
    return Query(name, path, directory or "", split)


def _open(query: Query, options: ImageOptions, opened: OpenedSets | None) -> Source | Records | StoredExamples:
    if opened is not None and query in opened:
        return opened[query]
    result = _opener(query.name)(query, options)
    if opened is not None and isinstance(result, Records):
        opened[query] = result
    return result


def _opener(name: str) -> "Callable[[Query, ImageOptions], Source | Records | StoredExamples]":
    """Returns the function of `OPENERS` for a name. Raises UserError, with the nearest name, for another name."""
    prefix, colon, rest = name.partition(":")
    if f"{prefix}:" in OPENERS and not rest:
        raise UserError(f"data.name={name}: must have a name or path after the prefix, as in {prefix}:NAME")
    if prefix + colon not in OPENERS:
        similar = difflib.get_close_matches(prefix, [key.rstrip(":") for key in OPENERS], n=1, cutoff=0.5)
        if colon and similar and f"{similar[0]}:" in OPENERS:
            raise UserError(f"unknown data set, data.name {name!r}: did you mean '{similar[0]}:{rest}'?")
        raise unknown("data set, data.name", name, OPENERS)
    return OPENERS[prefix + colon]


def _check(name: str, options: ImageOptions) -> None:
    """Raises UserError for options that do not fit a data set."""
    _opener(name)
    if name in CLASSES and options.background not in _BACKGROUNDS:
        raise unknown("background", options.background, _BACKGROUNDS)
    if name in CLASSES and options.background == "transparent" and name != "emoji":
        raise UserError(
            f"data.background=transparent: {name} has no transparent background; use white, or the data set emoji"
        )
    parse_colour(options.background)
    check_fit(options.fit)
    validate_integer("data.image_size", options.image_size, high=_MAX_SIDE)
    validate_integer("data.num_classes", options.num_classes, low=-1)
    if options.channels not in CHANNELS:
        raise UserError(f"data.channels={options.channels}: must be 1, 3 or 4, or 0 for those of the data set")
    if options.class_names and options.num_classes not in (-1, len(options.class_names)):
        raise UserError(
            f"data.num_classes={options.num_classes}: data.class_names has {len(options.class_names)} names; remove one"
        )


def _info(name: str, options: ImageOptions, channels: int, classes: int, names: tuple[str, ...]) -> DatasetInfo:
    """Returns the properties of a set with those that `options` overrides."""
    wanted = len(options.class_names) if options.class_names else options.num_classes
    if 0 < wanted < classes or (wanted > 0 and not classes):
        problem = f"data.name={name} has {classes}" if classes else f"data.name={name} has no labels"
        raise UserError(f"data.num_classes={wanted}: {problem}; use -1, for the classes of the set")
    if wanted == 0:
        return DatasetInfo(options.channels or channels, 0, ())
    names = options.class_names or (names if wanted in (-1, classes) else ())
    return DatasetInfo(options.channels or channels, wanted if wanted > 0 else classes, names)


def _records_info(name: str, records: Records, options: ImageOptions) -> DatasetInfo:
    channels = options.channels or infer_channels(records, options.background)
    if options.class_names and records.class_names and options.num_classes != 0:
        if unknown_names := sorted(set(records.class_names) - set(options.class_names)):
            raise UserError(
                f"data.name={name}: the class {unknown_names[0]!r} is not among data.class_names, the "
                f"{len(options.class_names)} classes of the run; remove its images, or train a new run"
            )
        return DatasetInfo(channels, len(options.class_names), options.class_names)
    return _info(name, options, channels, records.num_classes, records.class_names)


def _stored_info(name: str, examples: StoredExamples, options: ImageOptions) -> DatasetInfo:
    """Returns the properties of the images of stored examples. Raises UserError for options of other images."""
    stored, kind = examples.index.data, examples.index.kind
    for field, value in (("image_size", options.image_size), ("channels", options.channels)):
        if value not in (0, stored[field]):
            raise UserError(
                f"data.{field}={value}: {examples.directory} has {kind} of images with {stored[field]}; set it to that "
                f"number, or {'encode the images again' if kind == 'latents' else 'sample pairs of another run'}"
            )
    return _info(name, options, stored["channels"], stored["num_classes"], tuple(stored["class_names"]))


def preparation_command(name: str, directory: str | None, image_size: int = 64) -> str | None:
    """Returns the command that prepares a data set, or None if it needs no preparation."""
    directory = directory or "DIR"
    if name == "emoji":
        size = _emoji_size(image_size)
        return f"python -m diffjax.data.prepare emoji --manual_dir=PACKAGES --data_dir={directory} --image_size={size}"
    if name in ("digits", "shapes"):
        return None
    return f"pip install 'diffjax[tfds]' && tfds build {name} --file_format=array_record --data_dir={directory}"


def _emoji_size(image_size: int) -> int:
    """Returns the prepared size of emoji for `image_size`."""
    return 32 if image_size <= 32 else 64


def _digits(query: Query, options: ImageOptions) -> Source:
    """Opens 1,797 digits; every fifth in the order of labels is in "test": 1,437 and 360, with equal classes."""
    from sklearn import datasets

    split, image_size = query.split, options.image_size
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


def _shapes(query: Query, options: ImageOptions) -> Source:
    split, image_size = query.split, options.image_size
    if split not in shapes.SPLITS:
        raise unknown("split of shapes", split, shapes.SPLITS)

    def example(i: int) -> Example:
        scene = shapes.scene(split, i)
        label = np.int32(shapes.SHAPES.index(scene.objects[0].shape))
        return {"image": shapes.render(scene, image_size), "label": label, "caption": shapes.caption(scene)}

    def read_captions(indices: Sequence[int]) -> list[str]:
        return [shapes.sentence(shapes.sample_description(split, i)) for i in indices]

    read = lambda indices: [example(i) for i in indices]  # noqa: E731
    return Source(_SHAPES_LENGTH[split], read, read_captions=read_captions)


def _prepared(query: Query, options: ImageOptions) -> Source:
    name, directory, split, image_size = query.name, query.directory, query.split, options.image_size
    how = f"prepare it with `{preparation_command(name, directory, image_size)}`"
    if not directory:
        raise MissingData(f"data.dir is not set: {name} is read from disk; {how}, then {SET_DIRECTORY}")
    folder = prepared_folder(directory, f"{name}/{_emoji_size(image_size)}" if name == "emoji" else name, how)
    builder = open_builder(folder, how)
    try:
        data = open_split(builder, split, how)
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
        if name == "emoji" and options.background == "white":
            image = on_white(image)
        example = {"image": image, "label": np.int32(label)}
        if "caption" in record:
            example["caption"] = record["caption"].decode()
        return example

    cache = Cache(options.cache_gib, len(data))

    def read(indices: Sequence[int]) -> list[Example]:
        examples = {i: example for i in indices if (example := cache.find(i))}
        new = [i for i in indices if i not in examples]
        for i, record in zip(new, data.__getitems__(new), strict=True):
            examples[i] = decode(record)
            cache.add(i, examples[i])
        return [examples[i] for i in indices]

    return Source(len(data), read)


def _on_disk(opener: Callable[[Query], T]) -> Callable[[Query, ImageOptions], T]:
    return lambda query, options: opener(query)


# Name, or prefix of a name, of every data set -> function that opens a split: a source of square images, or records.
OPENERS: dict[str, Callable[[Query, ImageOptions], Source | Records | StoredExamples]] = {
    "digits": _digits,
    "shapes": _shapes,
    **dict.fromkeys(("fashion_mnist", "cifar10", "emoji"), _prepared),
    "folder": _on_disk(open_folder),
    "npz:": _on_disk(open_npz),
    "tar:": _on_disk(open_tar),
    "tfds:": _on_disk(open_tfds),
    "hf:": _on_disk(open_hf),
    **dict.fromkeys(("latents", "pairs"), _on_disk(open_store)),
}
