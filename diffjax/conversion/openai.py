"""Single files of OpenAI's U-Nets: Improved DDPM, ADM and its classifiers, consistency models, GLIDE.

Also of networks trained with this code, such as an ONNX file of a consistency model.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffjax.conversion.components import ImportedRun, check_transformer
from diffjax.errors import UserError
from diffjax.published.folders import rename
from diffjax.published.lazy import LazyTensor
from diffjax.published.table import Block, Constant, Order, Table, by_head
from diffjax.published.tables import unet

Tensors = Mapping[str, LazyTensor]
Shapes = Mapping[str, tuple[int, ...]]

_TIME = "time_embed.0.weight"  # of every U-Net of this code
_NORMS = {  # of an ONNX file, where they are named after the layer that reads them
    r"(.*)in_layers\.2\.norm\.(weight|bias)": r"\1in_layers.0.\2",
    r"(.*)out_layers\.3\.norm\.(weight|bias)": r"\1out_layers.0.\2",
    r"(.*)qkv\.norm\.(weight|bias)": r"\1norm.\2",
    r"out\.2\.norm\.(weight|bias)": r"out.0.\1",
}
_ABSENT = {"resample": "conv", "class_conditional": False}  # values of fields that a config does not have
_ORDERS = ("by_head", "contiguous")
_LAYERS = {"conv1d": 3, "conv2d": 4}  # dimensions of their weights


def read(path: Path, config: ConfigDict, tensors: Tensors) -> ImportedRun:
    """Returns the run of a file.

    Args:
      path: the file, for error messages.
      config: config of the network in the file.
      tensors: tensors of the file.

    Raises:
      UserError: the file has another network than the config, with the field that differs.
    """
    prefix = next((name.removesuffix(_TIME) for name in tensors if name.endswith(_TIME)), None)
    if prefix is None:
        raise UserError(f"{path} has no {_TIME}, so it is not of OpenAI's code; use the config of its family")
    if prefix and all(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    tensors = rename(tensors, _NORMS)
    for field, ours, theirs in _differences(config, {name: tensor.shape for name, tensor in tensors.items()}):
        raise UserError(f"{field}={ours}: {path} has {theirs}; set the field to it, or use another variant")
    return ImportedRun(path, config, table(config), tensors)


def table(config: ConfigDict) -> Table:
    """Returns the table of a model's variables.

    Args:
      config: config of a diffusion model or a classifier with a U-Net and `published.naming=openai`.

    Raises:
      UserError: an option that files of this naming do not have.
    """
    model, names, levels = config.model, config.published, len(config.model.multipliers)
    for field, choices in (("attention_order", _ORDERS), ("attention_layers", tuple(_LAYERS))):
        if names.get(field, choices[-1]) not in choices:
            raise UserError(f"published.{field}={names[field]}: must be one of {', '.join(choices)}")
    side = config.data.image_size // config.diffusion.get("downsample", 1)
    network = unet.openai(
        blocks=model.blocks,
        levels=levels,
        attention_levels=[level for level in range(levels) if side >> level in model.attention_resolutions],
        residual=model.get("resample", "conv") == "residual",
        qkv_order=_order(config, 3),
        kv_order=_order(config, 2),
        input_order=_input_order(config),
        attention_dims=_LAYERS[names.get("attention_layers", "conv1d")],
    )
    conditions: dict[str, Any] = {}
    if "caption" in config.get("conditions", {}):
        check_transformer("conditions.caption", config.conditions.caption)
        conditions["conditions/caption"] = Block("", unet.glide_caption(heads=config.conditions.caption.heads))
        conditions["embedding"] = "transformer_proj"
    if "number" in config.get("conditions", {}):
        conditions |= {"conditions/number/hidden": "label_emb.0", "embedding": "label_emb.2"}
    return {"times": Block("", {".*": Constant(0.0)}), "params/model": Block("", {**conditions, **network})}


def _order(config: ConfigDict, parts: int) -> Order | None:
    """Returns the order of fused queries, keys and values in the file."""
    if config.published.get("attention_order", "contiguous") == "contiguous":
        return None
    return by_head(parts, heads=config.model.get("heads", 1), head_channels=config.model.get("head_channels"))


def _input_order(config: ConfigDict) -> Order | None:
    """Returns the order of input channels in the file: GLIDE has the low-resolution image last."""
    if not {"low_res_image", "masked_image"} <= set(config.get("conditions", {})):
        return None
    c = config.data.channels
    return lambda count: np.r_[:c, 2 * c + 1 : count, c : 2 * c + 1]


def _differences(config: ConfigDict, shapes: Shapes) -> Iterator[tuple[str, Any, Any]]:
    """Yields the fields of a config that differ from a file's network: name, value, and value of the file.

    The latter are inferred from names and shapes of tensors, so sizes that these do not determine, such as the number
    of heads, are not compared. Nothing is yielded if the names are not those of a network of this code.
    """
    for part in (_network_fields, _output_fields, _caption_fields):
        try:
            inferred = part(config, shapes)
        except (LookupError, ArithmeticError):  # other names: the table reports which tensors are missing
            continue
        for field, theirs in inferred.items():
            section, _, name = field.rpartition(".")
            ours: Any = config
            for key in section.split("."):
                ours = ours[key]
            ours = ours.get(name, _ABSENT.get(name))
            if name == "attention_resolutions":
                ours = tuple(sorted(ours, reverse=True))
            if name == "blocks" and isinstance(ours, int) and len(set(theirs)) == 1:
                theirs = theirs[0]
            if ours != theirs:
                yield field, ours, theirs


def _network_fields(config: ConfigDict, shapes: Shapes) -> dict[str, Any]:
    """Returns fields of the U-Net, from the tensors of a file."""
    channels = shapes[_TIME][1]
    blocks = _blocks(config, shapes)
    starts = [1 + sum(count + 1 for count in blocks[:level]) for level in range(len(blocks))]
    widths = [shapes[f"input_blocks.{start}.0.out_layers.3.weight"][0] for start in starts]
    side = config.data.image_size // config.diffusion.get("downsample", 1)
    attends = [f"input_blocks.{start}.1.qkv.weight" in shapes for start in starts]
    scaled = shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0]
    fields = {
        "model.channels": channels,
        "model.multipliers": tuple(
            width // channels if width % channels == 0 else width / channels for width in widths
        ),
        "model.blocks": tuple(blocks),
        "model.attention_resolutions": tuple(side >> level for level, attending in enumerate(attends) if attending),
        "model.time_conditioning": "scale_shift" if scaled else "add",
    }
    if len(blocks) > 1:
        is_residual = f"input_blocks.{starts[1] - 1}.0.in_layers.2.weight" in shapes
        fields["model.resample"] = "residual" if is_residual else "conv"
    return fields


def _blocks(config: ConfigDict, shapes: Shapes) -> list[int]:
    """Returns the number of residual blocks of each level.

    In the decoder, the last block of each level but the finest has a second layer, which raises the resolution. A
    classifier does not have a decoder; its levels are those of the config.
    """
    outputs = _count(shapes, r"output_blocks\.(\d+)\..*")
    if not outputs:
        levels = len(config.model.multipliers)
        return [_count(shapes, r"input_blocks\.(\d+)\..*") // levels - 1] * levels
    layer = re.compile(r"output_blocks\.(\d+)\.[12]\.(?:conv|in_layers\.2)\.weight")
    ends = sorted(int(match[1]) for name in shapes if (match := layer.fullmatch(name)))
    bounds = [-1, *ends, outputs - 1]
    return [end - start - 1 for start, end in itertools.pairwise(bounds)][::-1]


def _output_fields(config: ConfigDict, shapes: Shapes) -> dict[str, Any]:
    """Returns fields of classes and of the output, from the tensors of a file."""
    if config.system == "classifier":
        return {"data.num_classes": shapes["out.2.c_proj.weight"][0]}
    fields: dict[str, Any] = {"diffusion.class_conditional": "label_emb.weight" in shapes}
    if fields["diffusion.class_conditional"]:
        fields["data.num_classes"] = shapes["label_emb.weight"][0] - (config.diffusion.label_dropout > 0)
    learned = shapes["out.2.weight"][0] == 2 * config.data.channels
    if learned != (config.diffusion.variance == "learned_range"):
        fields["diffusion.variance"] = "learned_range" if learned else "fixed_large"
    return fields


def _caption_fields(config: ConfigDict, shapes: Shapes) -> dict[str, Any]:
    """Returns fields of the caption transformer, from the tensors of a file."""
    if "caption" not in config.get("conditions", {}):
        return {}
    vocabulary, width = shapes["token_embedding.weight"]
    return {
        "text.vocabulary": vocabulary,
        "text.length": shapes["positional_embedding"][0],
        "conditions.caption.width": width,
        "conditions.caption.layers": _count(shapes, r"transformer\.resblocks\.(\d+)\..*"),
    }


def _count(shapes: Shapes, pattern: str) -> int:
    """Returns the number of blocks: one more than the greatest number in names that match a pattern; 0 without any."""
    return max((int(match[1]) + 1 for name in shapes if (match := re.fullmatch(pattern, name))), default=0)
