"""Parts of an import, and checks of another library's configs."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from diffjax import io
from diffjax.data.tokenizer import Tokenizer
from diffjax.errors import UserError, excerpt
from diffjax.published import folders
from diffjax.published.folders import refused
from diffjax.published.lazy import LazyTensor
from diffjax.published.table import Table

T = TypeVar("T")
Json = Mapping[str, Any]

_MAX_LEVELS = 16
_MAX_COUNTS = {  # a config above them is damaged or hostile, and would take hours to build
    **dict.fromkeys(("layers_per_block", "transformer_layers_per_block"), 64),
    **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), 64),
    "num_layers": 1024,
    **dict.fromkeys(("in_channels", "out_channels", "block_out_channels", "latent_channels", "vq_embed_dim"), 2**16),
    **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), 2**16),
    **dict.fromkeys(("norm_num_groups", "attention_head_dim", "cross_attention_dim", "sample_size"), 2**16),
    **dict.fromkeys(("num_attention_heads", "patch_size"), 2**16),
    **dict.fromkeys(("num_class_embeds", "num_vq_embeddings", "num_train_timesteps", "num_embeds_ada_norm"), 2**24),
}
_TRANSFORMER_OPTIONS = {"norm": "layer", "rope": False, "qk_norm": False, "value_residual": False, "registers": 0}
_OPTIONAL = ("attention_head_dim", "cross_attention_dim", "variance_type")  # may be null
_PER_LEVEL = (  # may be lists, as those whose default is one
    *("attention_head_dim", "block_out_channels", "cross_attention_dim", "layers_per_block"),
    *("num_attention_heads", "only_cross_attention", "sample_size", "transformer_layers_per_block"),
    *("encoder_block_out_channels", "decoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks"),
)


@dataclasses.dataclass(frozen=True)
class ImportedRun:
    """A run to write: its config, and where its variables come from.

    Attributes:
      source: file or folder, for error messages.
      config: config of the run; its parts are configs too.
      table: names of the tensors, by paths of the model's variables.
      tensors: tensors of the source by name.
      ignored: regular expressions of names of tensors that are not parameters.
      tokenizer: tokenizer of captions, if the model reads them.
      parts: runs of the config's parts, by name.
      siblings: folders next to the source that were read too.
    """

    source: Path
    config: ConfigDict
    table: Table
    tensors: Mapping[str, LazyTensor]
    ignored: Sequence[str] = ()
    tokenizer: Tokenizer | None = None
    parts: Mapping[str, "ImportedRun"] = dataclasses.field(default_factory=dict)
    siblings: Sequence[Path] = ()


def check_transformer(name: str, section: Mapping[str, Any]) -> None:
    """Raises UserError for options of the transformer of a section `name` that published files do not have."""
    for option, default in _TRANSFORMER_OPTIONS.items():
        if (value := section.get(option, default)) != default:
            raise UserError(
                f"{name}.{option}={value}: published files do not have this option; only {default} is supported"
            )
    if section.get("activation") == "swiglu":
        raise UserError(f"{name}.activation=swiglu: published files do not have this option; gelu is supported")


def below(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Returns the tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read_json(path: Path) -> dict[str, Any]:
    """Returns the fields of a JSON file of another library. Raises UserError if it cannot be read.

    Names of classes are without "Flax", as in UNet2DConditionModel: Flax classes had the fields of PyTorch's.
    """
    content = folders.read_json(path)
    if not isinstance(content.get("_class_name"), str | None):
        raise refused(path, "_class_name", content["_class_name"], "must be a name")
    return {name: _without_flax(value) for name, value in content.items()}


def read_component(path: Path, *classes: str) -> dict[str, Any]:
    """Returns the fields of a component's config. Raises UserError if it is not of one of the classes."""
    config = read_json(path)
    if config.get("_class_name") not in classes:
        raise refused(path, "_class_name", config.get("_class_name"), f"must be {' or '.join(classes)}")
    return config


def _without_flax(value: Any) -> Any:
    """Returns the name of a class, or [library, class], without the prefix of Flax classes; other values unchanged."""
    if isinstance(value, list):
        return [_without_flax(item) for item in value]
    return value.removeprefix("Flax") if isinstance(value, str) else value


def with_defaults(path: Path, config: Json, defaults: Json, *, single: Collection[str] = ()) -> dict[str, Any]:
    """Returns a config with the values of fields that it omits, without private ones.

    Args:
      path: file of the config, for error messages.
      config: fields of the file.
      defaults: values of the fields of its class.
      single: fields that must be one value, though they may be null or a list in other classes.

    Raises:
      UserError: a field is of another type than its default, or a count is not a positive integer of a sensible size.
    """
    fields = {name: value for name, value in config.items() if not name.startswith("_")}
    for name, value in fields.items():
        default, most = defaults.get(name), _MAX_COUNTS.get(name)
        is_optional = default is None or (name in _OPTIONAL and name not in single)
        if name not in defaults or (value is None and is_optional):
            continue
        needs_list, may_be_list = isinstance(default, list), name in _PER_LEVEL and name not in single
        items = [*value] if may_be_list and isinstance(value, list | tuple) else [value]
        if not 0 < len(items) <= _MAX_LEVELS:
            raise refused(path, name, value, f"must have 1 to {_MAX_LEVELS} entries")
        are_counts = all(type(item) is int and 0 < item <= (most or 0) for item in items)
        if most and not (are_counts and (isinstance(value, list | tuple) or not needs_list)):
            kind = "a list of whole numbers" if needs_list else "a whole number"
            raise refused(path, name, value, f"must be {kind} from 1 to {most:,}")
        if not most and default is not None and not all(_same_type(item, default) for item in items):
            raise refused(path, name, value, f"must be of the type of {excerpt(io.to_json(default), 80)}")
    return {**defaults, **fields}


def _same_type(value: Any, default: Any) -> bool:
    """Returns whether a value is of the type of its default, where numbers may be whole or not."""
    if isinstance(default, bool | str | list | tuple):
        return isinstance(value, list | tuple if isinstance(default, list | tuple) else type(default))
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**31


def check_expressed(path: Path, config: Json, expressed: Json, *, ignored: Collection[str] = ()) -> None:
    """Checks that our config expresses every field of another library's config.

    Args:
      path: file of the config, for error messages.
      config: their fields, with defaults.
      expressed: their fields, computed from our config.
      ignored: fields that do not affect the numbers.

    Raises:
      UserError: a field has another value than our config expresses; the message names it.
    """
    for name, value in config.items():
        if name in ignored:
            continue
        if name not in expressed:
            if value not in (None, False, 0, (), []):
                raise refused(path, name, value, "is not known")
        elif _plain(value) != _plain(expressed[name]):
            only = excerpt(io.to_json(_plain(expressed[name])), 80)
            raise refused(path, name, value, f"is not supported; only {only} is, with the other fields")


def _plain(value: Any) -> Any:
    """Returns a value in which equal configs are equal: lists for tuples, numbers without their type."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
