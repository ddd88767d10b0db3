"""A published CLIP from the folder that Hugging Face's libraries save: config.json and model.safetensors.

A preprocessor_config.json, where there is one, tells how pixels are normalised. Older folders have pytorch_model.bin in
the place of model.safetensors. The token that ends a text needs no telling: encoders read the last one.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax import io
from diffjax.errors import UserError, excerpt
from diffjax.nn.clip import TextTransformer, VisionTransformer
from diffjax.nn.pretrained.checkpoint_reader import Weights
from diffjax.nn.transformer import ACTIVATIONS

# A config.json leaves out what is so.
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
_PIXELS = {  # of OpenAI's images, in [0, 1]
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


class Published(NamedTuple):
    """A CLIP from a folder."""

    image_encoder: VisionTransformer
    text_encoder: TextTransformer
    variables: Mapping[str, Any]  # {"params": {"model": {"image", "text", "log_scale"}}}, NumPy float32
    image_size: int  # height and width
    text_length: int  # tokens of a text


def is_published(path: str | Path) -> bool:
    """Returns whether a folder has the config.json of a published model, and not that of a run."""
    try:
        found = io.parse_json(io.read_bytes(Path(path) / "config.json", io.MAX_JSON))
    except (OSError, ValueError, UserError):
        return False
    return isinstance(found, dict) and "model_type" in found


def fingerprint(path: str | Path) -> str:
    """Of the weights in a folder."""
    return "sha256:" + io.file_hash(_weights(Path(path)))[:16]


def load(path: str | Path) -> Published:
    """The CLIP of a folder; its image encoder takes [-1, 1] and normalises by itself.

    Raises:
      UserError: a file is missing or cannot be read, the folder is not of a CLIP, or it is of one with options or
        tensors that CLIP's networks have not.
    """
    folder = Path(path)
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise UserError(f"{folder} is not a CLIP: config.json says model_type {_shown(config.get('model_type'))}")
    text, vision = _section(folder, config, "text_config", _TEXT), _section(folder, config, "vision_config", _VISION)
    dimensions = _count(folder, "projection_dim", config.get("projection_dim", 512))
    pixel_mean, pixel_std = _pixels(folder, vision["num_channels"])

    weights = Weights(_weights(folder), "the CLIP of its config.json")
    params = {
        "image": _image_params(weights, vision, dimensions),
        "text": _text_params(weights, text, dimensions),
        "log_scale": _take(weights, "logit_scale"),
    }
    weights.done(but=["position_ids"])  # numbers from 0 on, which older files have
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


def _weights(folder: Path) -> Path:
    name = "model.safetensors"
    older = not (folder / name).exists() and (folder / "pytorch_model.bin").exists()
    return folder / ("pytorch_model.bin" if older else name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = io.parse_json(io.read_bytes(path, io.MAX_JSON))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {excerpt(str(error))}; download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a CLIP's: it has no fields")
    return found


def _shown(value: Any) -> str:
    """Returns a value of a JSON file for an error message: short, and on one line."""
    try:
        return excerpt(io.to_json(value), 80)
    except RecursionError:
        return "nested too deeply"


def _count(folder: Path, name: str, value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise UserError(f"{folder}/config.json: {name} is {_shown(value)}: a whole number above 0 is needed")
    return value


def _section(folder: Path, config: Mapping[str, Any], name: str, standard: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an encoder. Of old they stood in NAME_dict as well, which counts where it does."""
    found = next((config[key] for key in (f"{name}_dict", name) if config.get(key) is not None), {})
    if not isinstance(found, dict):
        raise UserError(f"{folder}/config.json: {name} has no fields")
    options = {key: found.get(key, value) for key, value in standard.items()}
    for key, value in options.items():
        if isinstance(standard[key], int):
            _count(folder, f"{name}.{key}", value)
    for key, known in (("hidden_act", list(ACTIVATIONS)), ("layer_norm_eps", [1e-5])):
        if options[key] not in known:
            names = " and ".join(map(str, known))
            raise UserError(f"{folder}/config.json: {name}.{key} is {_shown(options[key])}: known are {names}")
    if options["hidden_size"] % options["num_attention_heads"]:
        raise UserError(
            f"{folder}/config.json: {name} has {options['hidden_size']} channels, which its "
            f"{options['num_attention_heads']} heads do not divide"
        )
    return options


def _pixels(folder: Path, channels: int) -> list[tuple[float, ...]]:
    """The mean and the deviation of pixels in [0, 1]."""
    path = folder / "preprocessor_config.json"
    found = _PIXELS | (_read_json(path) if path.exists() else {})
    for name, least in (("image_mean", -math.inf), ("image_std", 0)):
        values = found[name]
        if not (
            isinstance(values, list | tuple) and len(values) == channels and all(_is_number(v, least) for v in values)
        ):
            kind = "a number" if name == "image_mean" else "a number above 0"
            raise UserError(f"{path}: {name} is {_shown(values)}: {kind} for each of {channels} channels is needed")
    return [tuple(found[name]) for name in _PIXELS]


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least < value < 1e30


def _transformer_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": options["hidden_size"],
        "layers": options["num_hidden_layers"],
        "heads": options["num_attention_heads"],
        "mlp_ratio": options["intermediate_size"] / options["hidden_size"],
        "activation": options["hidden_act"],
    }


def _image_params(weights: Weights, options: Mapping[str, Any], dimensions: int) -> dict[str, Any]:
    width, patch, places = options["hidden_size"], options["patch_size"], "vision_model.embeddings.position_embedding"
    kernel = ("vision_model.embeddings.patch_embedding.weight", width, options["num_channels"], patch, patch)
    return {
        "patch": {"kernel": _take(weights, *kernel).transpose(2, 3, 1, 0)},
        "class": _take(weights, "vision_model.embeddings.class_embedding", width),
        "place": _take(weights, f"{places}.weight", (options["image_size"] // patch) ** 2 + 1, width),
        "norm_in": _norm(weights, "vision_model.pre_layrnorm", width),  # so it is published
        "transformer": _transformer(weights, "vision_model", "post_layernorm", options),
        "out": {"kernel": _take(weights, "visual_projection.weight", dimensions, width).T},
    }


def _text_params(weights: Weights, options: Mapping[str, Any], dimensions: int) -> dict[str, Any]:
    width, tables = options["hidden_size"], "text_model.embeddings"
    return {
        "token": {"embedding": _take(weights, f"{tables}.token_embedding.weight", options["vocab_size"], width)},
        "place": _take(weights, f"{tables}.position_embedding.weight", options["max_position_embeddings"], width),
        "transformer": _transformer(weights, "text_model", "final_layer_norm", options),
        "out": {"kernel": _take(weights, "text_projection.weight", dimensions, width).T},
    }


def _transformer(weights: Weights, model: str, last_norm: str, options: Mapping[str, Any]) -> dict[str, Any]:
    width, inside = options["hidden_size"], options["intermediate_size"]
    params = {"norm_out": _norm(weights, f"{model}.{last_norm}", width)}
    for i in range(options["num_hidden_layers"]):
        name = f"{model}.encoder.layers.{i}"
        q, k, v = (_dense(weights, f"{name}.self_attn.{part}_proj", width, width) for part in "qkv")
        params[f"block_{i}"] = {
            "norm_attention": _norm(weights, f"{name}.layer_norm1", width),
            "qkv": {key: np.concatenate([q[key], k[key], v[key]], axis=-1) for key in q},
            "out": _dense(weights, f"{name}.self_attn.out_proj", width, width),
            "norm_mlp": _norm(weights, f"{name}.layer_norm2", width),
            "mlp_in": _dense(weights, f"{name}.mlp.fc1", width, inside),
            "mlp_out": _dense(weights, f"{name}.mlp.fc2", inside, width),
        }
    return params


def _norm(weights: Weights, name: str, width: int) -> dict[str, np.ndarray]:
    return {"scale": _take(weights, f"{name}.weight", width), "bias": _take(weights, f"{name}.bias", width)}


def _dense(weights: Weights, name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    kernel = _take(weights, f"{name}.weight", outputs, inputs).T
    return {"kernel": kernel, "bias": _take(weights, f"{name}.bias", outputs)}


def _take(weights: Weights, name: str, *shape: int) -> np.ndarray:
    return weights.take(name, *shape).astype(np.float32)
