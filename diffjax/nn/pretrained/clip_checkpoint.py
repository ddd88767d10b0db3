"""Loads a published CLIP from a folder in the format of Hugging Face's libraries.

The folder has config.json and weights (model.safetensors; older ones: pytorch_model.bin), and optionally
preprocessor_config.json with the normalisation of pixels. The end-of-text token of the config is not used, because the
text encoder takes the state of the last token.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import numpy as jnp

from diffjax import io
from diffjax.errors import UserError
from diffjax.nn.clip import TextTransformer, VisionTransformer
from diffjax.published import clip_config, table
from diffjax.published.folders import find_weights, open_component, read_json
from diffjax.published.tables import clip as tables


class Published(NamedTuple):
    """Encoders and weights of a published CLIP; an encoder that the folder does not have is None."""

    image_encoder: VisionTransformer | None
    text_encoder: TextTransformer | None
    variables: Mapping[str, Any]  # {"params": {"model": {"image", "text", "log_scale"}}}, NumPy float32
    image_size: int  # height and width; 0 without an image encoder
    text_length: int  # tokens per text; 0 without a text encoder


def is_published(path: str | Path) -> bool:
    """Returns whether a folder has the config.json of a published model, as opposed to that of a run."""
    try:
        config = io.parse_json(io.read_bytes(Path(path) / "config.json", io.MAX_JSON))
    except (OSError, ValueError, UserError):
        return False
    return isinstance(config, dict) and "model_type" in config


def fingerprint(path: str | Path) -> str:
    """Returns a short hash of the weights in a folder."""
    return "sha256:" + io.file_hash(find_weights(Path(path)))[:16]


def load(path: str | Path) -> Published:
    """Loads the CLIP of a folder; its image encoder normalises images in [-1, 1] itself.

    Raises:
      UserError: a file is missing or cannot be read, the folder is not of a CLIP, or it has options or tensors that
        nn/clip.py does not have.
    """
    folder = Path(path)
    config = read_json(folder / "config.json")
    tensors = open_component(folder) if config.get("model_type") in clip_config.MODEL_TYPES else {}
    projects = any(name in tensors for name in tables.TRANSFORMERS_PROJECTIONS)
    sections = clip_config.read(folder / "config.json", config, projects=projects)
    dimensions = sections["model"]["dimensions"]
    image_encoder = text_encoder = None
    size = length = 0
    shapes: dict[str, Any] = {}
    if "image_encoder" in sections:
        size, channels = sections["data"]["image_size"], sections["data"]["channels"]
        preprocessor = folder / "preprocessor_config.json"
        options = read_json(preprocessor) if preprocessor.exists() else None
        pixels = clip_config.read_pixels(preprocessor, options, channels)
        image_encoder = VisionTransformer(dimensions=dimensions, **sections["image_encoder"], **pixels)
        images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
        shapes["image"] = _shapes(folder, image_encoder, images)
    if "text_encoder" in sections:
        length, vocabulary = sections["text"]["length"], sections["text"]["vocabulary"]
        text_encoder = TextTransformer(vocabulary, dimensions=dimensions, **sections["text_encoder"])
        shapes["text"] = _shapes(folder, text_encoder, jax.ShapeDtypeStruct((1, length), jnp.int32))
    if len(shapes) == 2:
        shapes["log_scale"] = jax.ShapeDtypeStruct((), jnp.float32)
    params = table.read(
        tables.transformers(tensors),
        flatten_dict({"params": {"model": shapes}}, sep="/"),
        tensors,
        network=f"{folder} is not the CLIP of its config.json",
        ignored=tables.TRANSFORMERS_IGNORED,
    )
    return Published(image_encoder, text_encoder, unflatten_dict(params, sep="/"), size, length)


def _shapes(folder: Path, encoder: VisionTransformer | TextTransformer, inputs: jax.ShapeDtypeStruct) -> Any:
    """Returns the shapes of an encoder's parameters. Raises UserError for sizes that do not fit."""
    try:
        return jax.eval_shape(encoder.init, jax.random.key(0), inputs)["params"]
    except ValueError as error:
        raise UserError(f"{folder}/config.json: {error}") from error
