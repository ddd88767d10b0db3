"""Configs of transformers' CLIPs (config.json), and the sections of ours, in both directions."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffjax.errors import UserError
from diffjax.published.folders import refused, shown

Json = Mapping[str, Any]
Sections = dict[str, dict[str, Any]]  # sections of a config of system=clip


class _Row(NamedTuple):
    """A field of ours, as section.field, their field, and its default."""

    ours: str
    theirs: str
    default: Any


_TEXT = [
    _Row("text.vocabulary", "vocab_size", 49408),
    _Row("text.length", "max_position_embeddings", 77),
    _Row("text_encoder.width", "hidden_size", 512),
    _Row("text_encoder.layers", "num_hidden_layers", 12),
    _Row("text_encoder.heads", "num_attention_heads", 8),
    _Row("text_encoder.mlp_ratio", "intermediate_size", 2048),  # theirs: mlp_ratio x width
    _Row("text_encoder.activation", "hidden_act", "quick_gelu"),
]
_VISION = [
    _Row("data.image_size", "image_size", 224),
    _Row("data.channels", "num_channels", 3),
    _Row("image_encoder.patch", "patch_size", 32),
    _Row("image_encoder.width", "hidden_size", 768),
    _Row("image_encoder.layers", "num_hidden_layers", 12),
    _Row("image_encoder.heads", "num_attention_heads", 12),
    _Row("image_encoder.mlp_ratio", "intermediate_size", 3072),
    _Row("image_encoder.activation", "hidden_act", "quick_gelu"),
]
_ROWS = {"text_config": _TEXT, "vision_config": _VISION}
_SECTION_OF = {"clip_text_model": "text_config", "clip_vision_model": "vision_config"}
MODEL_TYPES = ("clip", *_SECTION_OF)  # values of `model_type`
_FIXED = {"layer_norm_eps": 1e-5, "attention_dropout": 0.0, "dropout": 0.0}  # the only supported values
_ACTIVATIONS = ("gelu", "quick_gelu")
_MAX_LAYERS = 1000
_DIMENSIONS = 512
_IGNORED = {  # fields that do not affect embeddings and states
    *("projection_dim", "model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "problem_type"),
    *("initializer_range", "initializer_factor", "logit_scale_init_value", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "sep_token_id", "gradient_checkpointing", "return_dict", "output_hidden_states", "use_cache"),
    *("output_attentions", "torchscript", "use_bfloat16", "tf_legacy_loss", "tie_word_embeddings", "num_labels"),
    *("chunk_size_feed_forward", "id2label", "label2id", "tokenizer_class", "finetuning_task", "prefix"),
    # of text generation, in files of older versions
    *("max_length", "min_length", "early_stopping", "num_beams", "num_beam_groups", "temperature", "top_k", "top_p"),
    *("typical_p", "repetition_penalty", "length_penalty", "num_return_sequences", "diversity_penalty"),
}  # fmt: skip

# OpenAI's normalisation of pixels in [0, 1], which most CLIPs have
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def read(path: Path, config: Json, *, projects: bool = True) -> Sections:
    """Returns the sections of our config for the config of a CLIPModel, or of a class with one encoder.

    Args:
      path: file of the config, for error messages.
      config: fields of the file.
      projects: whether the weights have the linear map to embeddings, which CLIPTextModel does not have.

    Returns:
      "model", and of each encoder "text" and "text_encoder", or "data" and "image_encoder", without `padding`,
      `pixel_mean` and `pixel_std`, which are in other files.

    Raises:
      UserError: the config is of another model, or has a value that our CLIP does not have; the message names it.
    """
    kind = config.get("model_type")
    sections: Sections = {"model": {}}
    if kind == "clip":
        known = {"text_config", "vision_config", "text_config_dict", "vision_config_dict"}
        _check_others(path, "", {name: value for name, value in config.items() if name not in known})
        for name in _ROWS:
            _read_section(path, name, _section(path, config, name), sections)
    elif isinstance(kind, str) and kind in _SECTION_OF:
        _read_section(path, _SECTION_OF[kind], config, sections, top=True)
    else:
        raise UserError(f"{path.parent} is not a CLIP: config.json has model_type {shown(kind)}")
    dimensions = _count(path, "projection_dim", config.get("projection_dim", _DIMENSIONS)) if projects else 0
    sections["model"]["dimensions"] = dimensions
    return sections


def write(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the config.json of transformers for a config of ours with vision transformers.

    Args:
      config: sections of `read`; fields that have a default may be missing.

    Returns:
      Fields of CLIPModel, or of CLIPTextModel or CLIPVisionModel, with or without WithProjection.
    """
    model = config.get("model", {})
    dimensions = model.get("dimensions", 0)
    written = {}
    for name, encoder in (("text_config", "text_encoder"), ("vision_config", "image_encoder")):
        if encoder in config:
            written[name] = _write_section(config, name) | {"projection_dim": dimensions or _DIMENSIONS}
    if len(written) == 2:
        classes, written = ["CLIPModel"], {**written, "model_type": "clip", "projection_dim": dimensions}
    else:
        ((name, fields),) = written.items()
        kind = next(kind for kind, section in _SECTION_OF.items() if section == name)
        stem = {"text_config": "CLIPTextModel", "vision_config": "CLIPVisionModel"}[name]
        classes, written = [stem + "WithProjection" * bool(dimensions)], {**fields, "model_type": kind}
    return {**written, "architectures": classes}


def read_pixels(path: Path, config: Json | None, channels: int) -> dict[str, Any]:
    """Returns `pixel_mean` and `pixel_std` of a preprocessor_config.json, one value per channel each.

    Args:
      path: the file, for error messages.
      config: its fields; None: there is no such file.
      channels: channels of images.

    Raises:
      UserError: invalid values.
    """
    result = {}
    for ours, theirs, default, low in (
        ("pixel_mean", "image_mean", PIXEL_MEAN, -math.inf),
        ("pixel_std", "image_std", PIXEL_STD, 0.0),
    ):
        values = default if config is None else config.get(theirs, default)
        if not (
            isinstance(values, list | tuple) and len(values) == channels and all(_is_number(v, low) for v in values)
        ):
            kind = "a number" if ours == "pixel_mean" else "a positive number"
            raise UserError(f"{path}: {theirs}={shown(values)}: requires {kind} for each of {channels} channels")
        result[ours] = tuple(float(value) for value in values)
    return result


def _section(path: Path, config: Json, name: str) -> Json:
    """Returns the section of an encoder. Old files have a section NAME_dict as well, which takes precedence."""
    section = next((config[key] for key in (f"{name}_dict", name) if config.get(key) is not None), {})
    if not isinstance(section, dict):
        raise UserError(f"{path}: {name} has no fields")
    return section


def _read_section(path: Path, name: str, fields: Json, sections: Sections, *, top: bool = False) -> None:
    """Adds the fields of an encoder to sections of ours; `top`: they are not in a section of the file."""
    prefix = "" if top else f"{name}."
    values = {row.theirs: fields.get(row.theirs, row.default) for row in _ROWS[name]}
    for row in _ROWS[name]:
        value = values[row.theirs]
        if isinstance(row.default, int):
            high = _MAX_LAYERS if row.theirs == "num_hidden_layers" else 2**31 - 1
            _count(path, prefix + row.theirs, value, high)
        elif value not in _ACTIVATIONS:
            raise refused(path, prefix + row.theirs, value, f"must be {' or '.join(_ACTIVATIONS)}")
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise refused(path, f"{prefix}num_attention_heads", heads, f"must divide hidden_size={width}")
    _check_others(path, prefix, {key: value for key, value in fields.items() if key not in values})
    for row in _ROWS[name]:
        section, field = row.ours.split(".")
        value = values[row.theirs]
        if field == "mlp_ratio":
            value = value / width
        sections.setdefault(section, {})[field] = value


def _write_section(config: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    written = dict(_FIXED, initializer_range=0.02, initializer_factor=1.0)
    del written["dropout"]
    for row in _ROWS[name]:
        section, field = row.ours.split(".")
        value = config[section].get(field)
        if field == "mlp_ratio":
            value = round((4 if value is None else value) * config[section]["width"])
        written[row.theirs] = row.default if value is None else value
    return written


def _check_others(path: Path, prefix: str, fields: Json) -> None:
    """Raises UserError for a field that changes embeddings, and that our CLIP does not have."""
    for name, value in fields.items():
        if name in _FIXED:
            if isinstance(value, bool) or value not in (_FIXED[name], None):
                raise refused(path, prefix + name, value, f"must be {_FIXED[name]}")
        elif name not in _IGNORED and not name.startswith("_") and value not in (None, False, 0, "", [], {}):
            raise refused(path, prefix + name, value, "is not supported")


def _count(path: Path, name: str, value: Any, high: int = 2**31 - 1) -> int:
    if type(value) is not int or not 0 < value <= high:
        limit = f" up to {high}" if high == _MAX_LAYERS else ""
        raise refused(path, name, value, f"must be a positive integer{limit}")
    return value


def _is_number(value: Any, low: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < 1e30
