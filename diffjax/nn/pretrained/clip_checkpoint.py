"""Loads a published CLIP from a folder in the format of Hugging Face's libraries.

The folder has config.json and model.safetensors (older ones: pytorch_model.bin), and optionally
preprocessor_config.json with the normalisation of pixels. The end-of-text token of the config is not used, because the
text encoder takes the state of the last token.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax import io
from diffjax.errors import UserError
from diffjax.nn.clip import TextTransformer, VisionTransformer
from diffjax.nn.pretrained.transformers_folder import (
    check_count,
    dense,
    is_number,
    norm,
    pop,
    read_json,
    shown,
    weights_path,
)
from diffjax.published.tensors import Weights

# Defaults of fields that a config.json may omit.
_ENCODER = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    **_ENCODER,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    **_ENCODER,
}
_PIXELS = {  # OpenAI's normalisation of pixels in [0, 1]
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


class Published(NamedTuple):
    """Encoders and weights of a published CLIP."""

    image_encoder: VisionTransformer
    text_encoder: TextTransformer
    variables: Mapping[str, Any]  # {"params": {"model": {"image", "text", "log_scale"}}}, NumPy float32
    image_size: int  # height and width
    text_length: int  # tokens per text


def is_published(path: str | Path) -> bool:
    """Returns whether a folder has the config.json of a published model, as opposed to that of a run."""
    try:
        config = io.parse_json(io.read_bytes(Path(path) / "config.json", io.MAX_JSON))
    except (OSError, ValueError, UserError):
        return False
    return isinstance(config, dict) and "model_type" in config


def fingerprint(path: str | Path) -> str:
    """Returns a short hash of the weights in a folder."""
    return "sha256:" + io.file_hash(weights_path(Path(path)))[:16]


def load(path: str | Path) -> Published:
    """Loads the CLIP of a folder; its image encoder normalises images in [-1, 1] itself.

    Raises:
      UserError: a file is missing or cannot be read, the folder is not of a CLIP, or it has options or tensors that
        nn/clip.py does not have.
    """
    folder = Path(path)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise UserError(f"{folder} is not a CLIP: config.json has model_type {shown(config.get('model_type'))}")
    text, vision = _section(folder, config, "text_config", _TEXT), _section(folder, config, "vision_config", _VISION)
    dimensions = check_count(folder, "projection_dim", config.get("projection_dim", 512))
    pixel_mean, pixel_std = _pixels(folder, vision["num_channels"])

    weights = Weights(weights_path(folder), "the CLIP of its config.json")
    params = {
        "image": _image_params(weights, vision, dimensions),
        "text": _text_params(weights, text, dimensions),
        "log_scale": pop(weights, "logit_scale"),
    }
    weights.assert_empty(ignored=["position_ids"])  # 0, 1, 2, ... in older files
    image_encoder = VisionTransformer(
        patch=vision["patch_size"],
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
        dimensions=dimensions,
        **_transformer_fields(vision),
    )
    text_encoder = TextTransformer(text["vocab_size"], dimensions=dimensions, **_transformer_fields(text))
    variables = {"params": {"model": params}}
    return Published(image_encoder, text_encoder, variables, vision["image_size"], text["max_position_embeddings"])


def _section(folder: Path, config: Mapping[str, Any], name: str, standard: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of an encoder. Old files have a section NAME_dict as well, which takes precedence."""
    section = next((config[key] for key in (f"{name}_dict", name) if config.get(key) is not None), {})
    if not isinstance(section, dict):
        raise UserError(f"{folder}/config.json: {name} has no fields")
    options = {key: section.get(key, value) for key, value in standard.items()}
    for key, value in options.items():
        if isinstance(standard[key], int):
            check_count(folder, f"{name}.{key}", value)
    for key, known in (("hidden_act", ["gelu", "quick_gelu"]), ("layer_norm_eps", [1e-5])):
        if options[key] not in known:
            names = " or ".join(map(str, known))
            raise UserError(f"{folder}/config.json: {name}.{key}={shown(options[key])}: must be {names}")
    if options["hidden_size"] % options["num_attention_heads"]:
        raise UserError(
            f"{folder}/config.json: {name}.num_attention_heads={options['num_attention_heads']}: must divide "
            f"hidden_size={options['hidden_size']}"
        )
    return options


def _pixels(folder: Path, channels: int) -> list[tuple[float, ...]]:
    """Returns the mean and the standard deviation of pixels in [0, 1], a value per channel each."""
    path = folder / "preprocessor_config.json"
    options = _PIXELS | (read_json(path) if path.exists() else {})
    for name, low in (("image_mean", -math.inf), ("image_std", 0)):
        values = options[name]
        if not (
            isinstance(values, list | tuple) and len(values) == channels and all(is_number(v, low) for v in values)
        ):
            kind = "a number" if name == "image_mean" else "a positive number"
            raise UserError(f"{path}: {name}={shown(values)}: requires {kind} for each of {channels} channels")
    return [tuple(options[name]) for name in _PIXELS]


def _transformer_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": options["hidden_size"],
        "layers": options["num_hidden_layers"],
        "heads": options["num_attention_heads"],
        "mlp_ratio": options["intermediate_size"] / options["hidden_size"],
        "activation": options["hidden_act"],
    }


def _image_params(weights: Weights, options: Mapping[str, Any], dimensions: int) -> dict[str, Any]:
    width, patch, table = options["hidden_size"], options["patch_size"], "vision_model.embeddings.position_embedding"
    kernel = ("vision_model.embeddings.patch_embedding.weight", width, options["num_channels"], patch, patch)
    return {
        "patch": {"kernel": pop(weights, *kernel).transpose(2, 3, 1, 0)},
        "class": pop(weights, "vision_model.embeddings.class_embedding", width),
        "place": pop(weights, f"{table}.weight", (options["image_size"] // patch) ** 2 + 1, width),
        "norm_in": norm(weights, "vision_model.pre_layrnorm", width),  # spelled so in the published files
        "transformer": _transformer(weights, "vision_model", "post_layernorm", options),
        "out": {"kernel": pop(weights, "visual_projection.weight", dimensions, width).T},
    }


def _text_params(weights: Weights, options: Mapping[str, Any], dimensions: int) -> dict[str, Any]:
    width, tables = options["hidden_size"], "text_model.embeddings"
    return {
        "token": {"embedding": pop(weights, f"{tables}.token_embedding.weight", options["vocab_size"], width)},
        "place": pop(weights, f"{tables}.position_embedding.weight", options["max_position_embeddings"], width),
        "transformer": _transformer(weights, "text_model", "final_layer_norm", options),
        "out": {"kernel": pop(weights, "text_projection.weight", dimensions, width).T},
    }


def _transformer(weights: Weights, model: str, last_norm: str, options: Mapping[str, Any]) -> dict[str, Any]:
    width, inside = options["hidden_size"], options["intermediate_size"]
    params: dict[str, Any] = {"norm_out": norm(weights, f"{model}.{last_norm}", width)}
    for i in range(options["num_hidden_layers"]):
        name = f"{model}.encoder.layers.{i}"
        q, k, v = (dense(weights, f"{name}.self_attn.{part}_proj", width, width) for part in "qkv")
        params[f"block_{i}"] = {
            "norm_attention": norm(weights, f"{name}.layer_norm1", width),
            "qkv": {key: np.concatenate([q[key], k[key], v[key]], axis=-1) for key in q},
            "out": dense(weights, f"{name}.self_attn.out_proj", width, width),
            "norm_mlp": norm(weights, f"{name}.layer_norm2", width),
            "mlp_in": dense(weights, f"{name}.mlp.fc1", width, inside),
            "mlp_out": dense(weights, f"{name}.mlp.fc2", inside, width),
        }
    return params
