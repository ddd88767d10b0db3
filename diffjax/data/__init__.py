"""Data sets of images with labels and captions, and batches of their examples."""

from diffjax.data.pipeline import Batches, prefetch
from diffjax.data.sources import ImageOptions, class_names, dataset_info, image_spec, open_dataset, with_tokens

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
