"""Random batches of the shapes that a config's data has, and these shapes."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax.models.base import Model
from diffjax.models.capabilities import is_text_conditioned
from diffjax.runs.latents import stored_arrays
from diffjax.typing import ImageSpec


def random_batch(config: ConfigDict, spec: ImageSpec, model: Model) -> dict[str, np.ndarray]:
    """Returns a batch of `train.batch_size` random images, or stored latents, with labels and captions."""
    size, rng = config.train.batch_size, np.random.default_rng(config.seed)
    arrays = {name: rng.standard_normal((size, *shape), np.float32) for name, shape in stored_arrays(config).items()}
    images = {} if arrays else {"image": rng.integers(0, 256, (size, spec.size, spec.size, spec.channels), np.uint8)}
    batch = {
        **arrays,
        **images,
        "label": np.arange(size, dtype=np.int32) % max(spec.classes, 1),
        "index": np.arange(size, dtype=np.int32),
    }
    return batch | ({"tokens": random_tokens(size, model)} if is_text_conditioned(model) else {})


def batch_shapes(config: ConfigDict, spec: ImageSpec, model: Model, size: int) -> dict[str, Any]:
    """Returns the shapes of a batch of `size` examples, jax.ShapeDtypeStruct by name."""
    stored = {name: ((size, *shape), np.float32) for name, shape in stored_arrays(config).items()}
    shapes = {
        **(stored or {"image": ((size, spec.size, spec.size, spec.channels), np.uint8)}),
        "label": ((size,), np.int32),
        "index": ((size,), np.int32),
    } | ({"tokens": ((size, model.text.length), np.int32)} if model.text else {})
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def random_tokens(count: int, model: Model) -> np.ndarray:
    """Returns captions of the maximum length, int32 [count, length]."""
    assert model.text is not None
    return np.random.default_rng(0).integers(0, model.text.vocabulary, (count, model.text.length), np.int32)
