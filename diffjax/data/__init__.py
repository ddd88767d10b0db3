"""Data sets of images with labels and captions, and batches of their examples."""

from diffjax.data.examples import ImageOptions, with_tokens
from diffjax.data.pipeline import Batches, prefetch
from diffjax.data.sources import class_names, dataset_info, image_spec, open_dataset

__all__ = [
    "Batches",
    "ImageOptions",
    "class_names",
    "dataset_info",
    "image_spec",
    "open_dataset",
    "prefetch",
    "with_tokens",
]
