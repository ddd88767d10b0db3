"""What the measures of `launch.py evaluate` share."""

from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from diffjax.commands.flags import Arguments

SHOWN = 10  # images of a picture of reconstructions


def over_images(arguments: Arguments, what: str, function: Callable, images: np.ndarray, labels: np.ndarray):
    """function(keys, images, labels) in batches of one size, its leaves [B, ...] joined; keys are the images' own."""
    size, results = min(arguments.batch_size, len(images)), []
    for start in tqdm(range(0, len(images), size), unit="batch", desc=what):
        place = np.minimum(np.arange(start, start + size), len(images) - 1)  # the last batch repeats its last image
        keys = jax.vmap(jax.random.key)(place.astype(np.uint32) + np.uint32(arguments.seed))
        found = function(keys, images[place], labels[place])
        results.append(jax.tree.map(lambda leaf, start=start: np.asarray(leaf)[: len(images) - start], found))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def mean_and_error(values: np.ndarray) -> dict[str, float]:
    """The mean over images and its standard error."""
    values = np.asarray(values, np.float64)
    return {"mean": float(values.mean()), "standard_error": float(values.std(ddof=1) / np.sqrt(len(values)))}
