"""Shapes of the batches of a config, and random batches of these shapes."""

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax.models.base import Model
from diffjax.runs.latents import stored_arrays
from diffjax.typing import ImageSpec

NUM_EXAMPLES = 50_000  # size of the simulated data set


def batch_shapes(config: ConfigDict, spec: ImageSpec, model: Model, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of `size` examples by name: images or stored latents, labels and captions."""
    stored = {name: (shape, np.float32) for name, shape in stored_arrays(config).items()}
    shapes = {
        **(stored or {"image": ((spec.size, spec.size, spec.channels), np.uint8)}),
        "label": ((), np.int32),
        "index": ((), np.int32),
        **({"tokens": ((model.text.length,), np.int32)} if model.text else {}),
        **({"number": ((), np.float32)} if model.reads_number else {}),
    }
    return {name: jax.ShapeDtypeStruct((size, *shape), dtype) for name, (shape, dtype) in shapes.items()}


def random_batch(config: ConfigDict, spec: ImageSpec, model: Model) -> dict[str, np.ndarray]:
    """Returns a batch of `train.batch_size` random examples."""
    size, rng = config.train.batch_size, np.random.default_rng(config.seed)
    batch = {
        "label": np.arange(size, dtype=np.int32) % max(spec.classes, 1),
        "index": np.arange(size, dtype=np.int32),
        **({"tokens": random_tokens(size, model)} if model.text else {}),
    }
    for name, shape in batch_shapes(config, spec, model, size).items():
        if name == "image":
            batch[name] = rng.integers(0, 256, shape.shape, np.uint8)
        elif name not in batch:
            batch[name] = rng.standard_normal(shape.shape, np.float32)
    return batch


def random_tokens(count: int, model: Model) -> np.ndarray:
    """Returns captions of the maximum length, int32 [count, length]."""
    assert model.text is not None
    return np.random.default_rng(0).integers(0, model.text.vocabulary, (count, model.text.length), np.int32)
