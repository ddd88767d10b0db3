"""Published CLIPs as runs of system=clip, and runs as folders of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffjax import io
from diffjax.conversion.components import ImportedRun, check_transformer
from diffjax.data import tokenizer as tokenizers
from diffjax.data.tokenizer import Tokenizer
from diffjax.errors import UserError
from diffjax.models.parameter_paths import flatten
from diffjax.published import clip_config, safetensors_file
from diffjax.published.folders import open_component, read_json, refused
from diffjax.published.lazy import LazyTensor
from diffjax.published.table import Table, tensors_of
from diffjax.published.tables import clip as tables
from diffjax.runs.config_files import load_file

Tensors = Mapping[str, LazyTensor]
_PREFIXES = [  # of text encoders in files of Stable Diffusion, and starts of names after them
    ("cond_stage_model.", ""),
    ("transformer.", "text_model."),
    ("model.", "positional_embedding"),
]
NAMINGS = ("transformers", "openai", "glide_clip")  # values of `published.naming`


def read_clip(folder: Path, *, tokenizer: Path | None = None) -> ImportedRun:
    """Returns the run of a folder of transformers: CLIPModel, or one of its encoders.

    The classes are CLIPModel, CLIPTextModel, CLIPVisionModel, and the last two with WithProjection.

    Args:
      folder: folder with config.json and weights.
      tokenizer: folder of the tokenizer; None: `folder`.

    Raises:
      UserError: a file is missing, or has options or tensors that our CLIP does not have.
    """
    path = folder / "config.json"
    fields, tensors = read_json(path), open_component(folder)
    projects = any(name in tensors for name in tables.TRANSFORMERS_PROJECTIONS)
    sections = clip_config.read(path, fields, projects=projects)
    config = ConfigDict(load_file("configs/published/clip.py").to_dict())
    config.published.naming = "transformers"
    config.model.dimensions = sections["model"]["dimensions"]
    captions: Tokenizer | None = None
    if "text_encoder" in sections:
        captions = tokenizers.load(tokenizer or folder)
        padding = _padding(tokenizer or folder, captions)
        if not 0 <= padding < sections["text"]["vocabulary"]:
            raise refused(path, "vocab_size", sections["text"]["vocabulary"], f"the tokenizer pads with {padding}")
        captions = captions.with_padding(padding)
        config.text.update(sections["text"])
        config.text_encoder = ConfigDict({**sections["text_encoder"], "padding": padding})
    else:
        del config["text"], config["text_encoder"]
    if "image_encoder" in sections:
        config.data.update(sections["data"])
        pixels = _pixels(folder, sections["data"]["channels"])
        config.image_encoder = ConfigDict({"architecture": "vit", **sections["image_encoder"], **pixels})
        config.model.resize_images = sections["data"]["channels"] == 3
    else:
        del config["image_encoder"]
    names = tables.transformers(tensors)
    return ImportedRun(folder, config, names, tensors, ignored=tables.TRANSFORMERS_IGNORED, tokenizer=captions)


def read_single_file(path: Path, config: ConfigDict, tensors: Tensors) -> ImportedRun:
    """Returns the run of a single file: OpenAI's, open_clip's, or of the text encoder of Stable Diffusion.

    Args:
      path: the file, for error messages.
      config: config of the CLIP in the file, with `published.naming`, and the vocabulary in `text.tokenizer`.
      tensors: tensors of the file.

    Raises:
      UserError: the config does not name a vocabulary.
    """
    if not config.text.tokenizer:
        raise UserError(
            "text.tokenizer: is empty, and the file has no vocabulary; pass that of CLIP, bpe_simple_vocab_16e6.txt.gz "
            "of OpenAI's code or a folder with vocab.json and merges.txt"
        )
    captions = tokenizers.load(config.text.tokenizer)
    config = ConfigDict(config.to_dict())
    config.text.tokenizer = ""  # the run has its own copy
    for prefix, first in _PREFIXES:
        if any(name.startswith(prefix + first) for name in tensors):
            tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    layers = None if "image_encoder" in config else config.text_encoder.layers
    ignored = (*tables.TRANSFORMERS_IGNORED, *tables.openai_ignored(layers))
    return ImportedRun(path, config, table(config, tensors), tensors, ignored=ignored, tokenizer=captions)


def table(config: ConfigDict, tensors: Tensors | None = None) -> Table:
    """Returns the table of a CLIP's variables, by the names of `published.naming`.

    Args:
      config: config of system=clip.
      tensors: tensors of the file to read; None: a file is written.

    Raises:
      UserError: an option that such files do not have.
    """
    _check_encoders(config)
    if config.published.naming == "transformers":
        return tables.transformers(tensors or ())
    return tables.glide() if config.published.naming == "glide_clip" else tables.openai()


def _check_encoders(config: ConfigDict) -> None:
    """Raises UserError for options of the encoders that published files do not have."""
    for name in ("image_encoder", "text_encoder"):
        check_transformer(name, config.get(name, {}))


def write_clip(
    path: Path,
    config: ConfigDict,
    variables: Mapping[str, Any],
    out: Path,
    *,
    tokenizer: Tokenizer | None = None,
    tokenizer_out: Path | None = None,
) -> str:
    """Writes a CLIP as a folder of transformers, which `from_pretrained` loads.

    Args:
      path: file of the config, for error messages.
      config: config of system=clip.
      variables: its variables.
      out: folder to write.
      tokenizer: tokenizer of its captions.
      tokenizer_out: folder of the tokenizer; None: `out`.

    Returns:
      The class that loads the folder, such as "CLIPModel".

    Raises:
      UserError: the CLIP has an option that transformers does not have; the message names the config field.
    """
    if config.get("image_encoder", {}).get("architecture", "vit") != "vit":
        architecture = config.image_encoder.architecture
        raise refused(path, "image_encoder.architecture", architecture, "transformers has vision transformers only")
    if "diffusion" in config:
        raise refused(path, "diffusion", config.diffusion.to_dict(), "transformers has no CLIP of noised images")
    _check_encoders(config)
    out.mkdir(parents=True, exist_ok=True)
    written = clip_config.write(config.to_dict())
    if "image_encoder" in config:
        _write_json(out / "preprocessor_config.json", _preprocessor(config))
    if tokenizer:
        padding = config.text_encoder.get("padding", 0)
        ends = {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end, "pad_token_id": padding}
        written.get("text_config", written).update(ends)
        write_tokenizer(tokenizer, tokenizer_out or out, length=config.text.length, padding=padding)
    _write_json(out / "config.json", written)
    arrays = {path: np.asarray(leaf) for path, leaf in flatten({"params": variables["params"]}).items()}
    safetensors_file.save(out / "model.safetensors", tensors_of(tables.transformers(), arrays), {"format": "pt"})
    return written["architectures"][0]


def write_tokenizer(tokenizer: Tokenizer, out: Path, *, length: int, padding: int) -> None:
    """Writes a tokenizer with CLIP's vocabulary as a folder that transformers' CLIPTokenizer loads.

    Args:
      tokenizer: tokenizer whose words end in </w>.
      out: folder to write.
      length: tokens per caption.
      padding: id of the token at positions without a token.

    Raises:
      UserError: the tokenizer was trained on captions, and has another kind of vocabulary.
    """
    vocab, merges = tokenizers.vocabulary_and_merges(tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    io.write_text(out / "vocab.json", io.to_json(vocab) + "\n")
    io.write_text(out / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    word = {i: token for token, i in vocab.items()}
    assert tokenizer.start is not None and tokenizer.end is not None
    special = {"bos_token": word[tokenizer.start], "eos_token": word[tokenizer.end]}
    special |= {"unk_token": word[tokenizer.end], "pad_token": word[padding]}
    _write_json(out / "special_tokens_map.json", special)
    fields = {**special, "model_max_length": length, "do_lower_case": True, "add_prefix_space": False}
    _write_json(out / "tokenizer_config.json", {**fields, "tokenizer_class": "CLIPTokenizer"})


def _padding(folder: Path, tokenizer: Tokenizer) -> int:
    """Returns the id of a tokenizer's padding; the end token is CLIPTokenizer's default."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / name).exists():
            continue
        token = read_json(folder / name).get("pad_token")
        content = token.get("content") if isinstance(token, dict) else token
        if content is None:
            continue
        padding = tokenizer.bpe.token_to_id(content) if isinstance(content, str) else None
        if padding is None:
            raise refused(folder / name, "pad_token", token, "is not in the vocabulary")
        return padding
    return tokenizer.end or 0


def _pixels(folder: Path, channels: int) -> dict[str, tuple[float, ...]]:
    """Returns the normalisation of pixels; in a pipeline, it has its own folder."""
    candidates = [folder, folder.with_name("image_processor"), folder.with_name("feature_extractor")]
    for path in (candidate / "preprocessor_config.json" for candidate in candidates):
        if path.exists():
            return clip_config.read_pixels(path, read_json(path), channels)
    return clip_config.read_pixels(folder / "preprocessor_config.json", None, channels)


def _preprocessor(config: ConfigDict) -> dict[str, Any]:
    encoder, size, channels = config.image_encoder, config.data.image_size, config.data.channels
    values = {name: list(encoder.get(f"pixel_{name}", (0.5,))) for name in ("mean", "std")}
    return {
        "image_processor_type": "CLIPImageProcessor",
        **{f"image_{name}": value * channels if len(value) == 1 else value for name, value in values.items()},
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True),
        "resample": 3,
        "rescale_factor": 1 / 255,
    }


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    io.write_text(path, io.to_json(fields, indent=2, sort_keys=True) + "\n")
