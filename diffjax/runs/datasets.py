"""The data set of a config: its images, and for training also stored latents of them, or pairs of noise and samples."""

import contextlib

from ml_collections import ConfigDict

from diffjax import data
from diffjax.data.examples import DatasetInfo, Source
from diffjax.data.latents_store import read_index
from diffjax.data.records import MissingSplit, complement
from diffjax.data.sources import OpenedSets, is_built_in
from diffjax.runs.dependencies import part_names
from diffjax.typing import ImageSpec

_OPTIONS = ("background", "fit", "channels", "num_classes", "class_names", "cache_gib", "on_corrupt", "number")


def uses_store(config: ConfigDict) -> bool:
    """Returns whether a run is trained on stored latents or pairs."""
    return config.data.name in ("latents", "pairs")


def image_data(config: ConfigDict) -> ConfigDict:
    """Returns the section `data` of a config's images: of stored examples, the images that they are made of.

    Those of pairs are the images that the sampled run was trained on.

    Raises:
      UserError: there are no stored examples in `data.dir`.
    """
    if not uses_store(config):
        return config.data
    c = ConfigDict(config.data.copy_and_resolve_references()).unlock()
    stored = read_index(c.dir, c.name).data
    c.update({name: stored[name] for name in ("name", "dir", "fit", "background")})
    return c


def image_spec(config: ConfigDict) -> ImageSpec:
    """Returns the image size, channels and number of classes of a config's data set.

    The set is opened only if it is not built in and the config is not resolved (see `resolve`).
    """
    info = dataset_info(config)
    return ImageSpec(config.data.image_size, info.channels, info.num_classes)


def dataset_info(config: ConfigDict) -> DatasetInfo:
    """Returns the channels and classes of a config's data set, opened only if needed (see `image_spec`)."""
    c = config.data
    return data.dataset_info(c.name, directory=c.dir, split=c.split, options=_options(c))


def resolve(config: ConfigDict, opened: OpenedSets | None = None) -> ConfigDict:
    """Returns a config with the channels and classes of its data sets, so that a run needs no data to be opened.

    Built-in data sets, whose properties are known, and parts that are not used keep their fields.

    Args:
      config: config, with those of its parts.
      opened: sets that need not be opened again; those that are opened are added.
    """
    config = ConfigDict(config.copy_and_resolve_references()).unlock()
    _resolve_section(config, config.data.dir, {} if opened is None else opened)
    return config.lock()


def _resolve_section(config: ConfigDict, directory: str, opened: OpenedSets) -> None:
    """Resolves a config in place, and its parts, which have the same folder of data (`part_config`)."""
    if not is_built_in(config.data.name):
        c = config.data
        options = _options(c)
        info = data.dataset_info(c.name, directory=directory, split=c.split, options=options, opened=opened)
        if uses_store(config):
            c.update(fit=image_data(config).fit, background=image_data(config).background)
        c.update(channels=info.channels, num_classes=info.num_classes, class_names=info.class_names)
    for name in part_names(config):
        _resolve_section(config.parts[name], directory, opened)


def open_dataset(config: ConfigDict, split: str, opened: OpenedSets | None = None) -> Source:
    """Opens a split of a config's images.

    Args:
      config: config of a run.
      split: split, or a slice of one.
      opened: sets that need not be opened again, see `resolve`.

    Raises:
      UserError: the data set is not prepared, or has no such split.
    """
    return _open(image_data(config), split, opened)


def open_training_examples(config: ConfigDict, opened: OpenedSets | None = None) -> Source:
    """Opens the examples that a config is trained on: images, or stored latents or pairs.

    Raises:
      UserError: the data set is not prepared, or has no such split.
    """
    return _open(config.data, config.data.split, opened)


def open_held_out_examples(config: ConfigDict, opened: OpenedSets | None = None) -> Source:
    """Opens the examples of `held_out_split` for a loss: stored latents, or images if these are not stored.

    Pairs are samples, of which none are held out.

    Raises:
      MissingSplit: the set has only the split that the config is trained on.
    """
    opened = {} if opened is None else opened
    if config.data.name == "pairs":
        raise MissingSplit("data.name=pairs: has samples of a run, and none are held out")
    split = held_out_split(config, config.data.split, opened)
    if uses_store(config):
        with contextlib.suppress(MissingSplit):
            return _open(config.data, split, opened)
    return open_dataset(config, split, opened)


def _open(c: ConfigDict, split: str, opened: OpenedSets | None) -> Source:
    return data.open_dataset(c.name, directory=c.dir, split=split, options=_options(c), opened=opened)


def open_held_out_images(config: ConfigDict, split: str) -> Source:
    """Opens the images of `held_out_split`, with its errors."""
    opened: OpenedSets = {}
    return open_dataset(config, held_out_split(config, split, opened), opened)


def held_out_split(config: ConfigDict, split: str, opened: OpenedSets | None = None) -> str:
    """Returns a split without the examples of `split`: "test" or "train", else the rest of a slice: train[:90%].

    Raises:
      MissingSplit: the set has only this split; the message names slices.
    """
    other = "train" if split.startswith("test") else "test"
    try:
        open_dataset(config, other, opened)
    except MissingSplit as error:
        if not (rest := complement(split)):
            raise MissingSplit(f"{error}, in training too (data.split=train[:90%])") from None
        return rest
    return other


def test_split(config: ConfigDict) -> str:
    """Returns the split that metrics of data use by default: "test", else the rest of a slice such as "train[:90%]".

    Raises:
      MissingSplit: the set has only the split that the config is trained on.
    """
    try:
        open_dataset(config, "test")
    except MissingSplit:
        return held_out_split(config, config.data.split)
    return "test"


def open_prompts(config: ConfigDict, split: str = "test") -> Source:
    """Opens a split for its captions and images, or the training split where `split` does not exist."""
    try:
        return open_dataset(config, split)
    except MissingSplit:
        return open_dataset(config, config.data.split)


def _options(c: ConfigDict) -> data.ImageOptions:
    fields = {name: c[name] for name in _OPTIONS if name in c}  # old configs lack some
    return data.ImageOptions(c.image_size, **fields)
