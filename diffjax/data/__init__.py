"""Data: sources of images with labels and captions, and batches of them."""

from diffjax.data.pipeline import Batches, prefetch
from diffjax.data.sources import class_names, open_source, spec, tokenized

__all__ = ["Batches", "class_names", "open_source", "prefetch", "spec", "tokenized"]
