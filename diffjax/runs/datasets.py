"""The data set of a config."""

from ml_collections import ConfigDict

from diffjax import data
from diffjax.data.examples import DatasetInfo, Source
from diffjax.data.records import MissingSplit, complement
from diffjax.data.sources import is_built_in
from diffjax.runs.dependencies import part_names
from diffjax.typing import ImageSpec

_OPTIONS = ("background", "fit", "channels", "num_classes", "class_names", "cache_gib", "on_corrupt")


def image_spec(config: ConfigDict) -> ImageSpec:
    """Returns the image size, channels and number of classes of a config's data set.

    The set is opened only if it is not built in and the config is not resolved (see `resolve`).
    """
    info = dataset_info(config)
    return ImageSpec(config.data.image_size, info.channels, info.num_classes)


def dataset_info(config: ConfigDict) -> DatasetInfo:
    """Returns the channels and classes of a config's data set, opened only if needed (see `image_spec`)."""
    c = config.data
    return data.dataset_info(c.name, directory=c.dir, split=c.split, options=_options(config))


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a config with the channels and classes of its data sets, so that a run needs no data to be opened.

    Built-in data sets, whose properties are known, and parts that are not used keep their fields.
    """
    config = ConfigDict(config.copy_and_resolve_references()).unlock()
    _resolve_section(config, config.data.dir)
    return config.lock()


def _resolve_section(config: ConfigDict, directory: str) -> None:
    """Resolves a config in place, and its parts, which have the same folder of data (`part_config`)."""
    if not is_built_in(config.data.name):
        c = config.data
        info = data.dataset_info(c.name, directory=directory, split=c.split, options=_options(config))
        config.data.update(channels=info.channels, num_classes=info.num_classes, class_names=info.class_names)
    for name in part_names(config):
        _resolve_section(config.parts[name], directory)


def open_dataset(config: ConfigDict, split: str) -> Source:
    """Opens a split of a config's data set.

    Raises:
      UserError: the data set is not prepared, or has no such split.
    """
    c = config.data
    return data.open_dataset(c.name, directory=c.dir, split=split, options=_options(config))


def open_other(config: ConfigDict, split: str) -> Source:
    """Opens examples that are not in a split: "test" or "train", else the rest of a slice such as "train[:90%]".

    Raises:
      MissingSplit: the set has only this split; the message names slices.
    """
    try:
        return open_dataset(config, "train" if split.startswith("test") else "test")
    except MissingSplit as error:
        if not (rest := complement(split)):
            raise MissingSplit(f"{error}, in training too (data.split=train[:90%])") from None
        return open_dataset(config, rest)


def open_prompts(config: ConfigDict, split: str = "test") -> Source:
    """Opens a split for its captions and images, or the training split where `split` does not exist."""
    try:
        return open_dataset(config, split)
    except MissingSplit:
        return open_dataset(config, config.data.split)


def _options(config: ConfigDict) -> data.ImageOptions:
    fields = {name: config.data[name] for name in _OPTIONS if name in config.data}  # old configs lack some
    return data.ImageOptions(config.data.image_size, **fields)
