"""The data set of a config."""

from ml_collections import ConfigDict

from diffjax import data
from diffjax.data.sources import Source
from diffjax.typing import ImageSpec


def image_spec(config: ConfigDict) -> ImageSpec:
    """Returns the image size, channels and number of classes of a config's data set, without opening it."""
    return data.image_spec(config.data.name, config.data.image_size, config.data.background)


def open_dataset(config: ConfigDict, split: str) -> Source:
    """Opens a split of a config's data set.

    Raises:
      UserError: the data set is not prepared, or has no such split.
    """
    c = config.data
    return data.open_dataset(
        c.name,
        directory=c.dir,
        split=split,
        image_size=c.image_size,
        background=c.background,
        on_corrupt=c.get("on_corrupt", "raise"),
    )
