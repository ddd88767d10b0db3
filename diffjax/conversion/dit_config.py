"""Configs of diffusers' DiTTransformer2DModel, and the section `model` of ours."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffjax.conversion.components import Json, check_expressed, with_defaults
from diffjax.errors import UserError
from diffjax.nn.dit import DiT
from diffjax.published.table import Table
from diffjax.published.tables import dit

_DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}
_OPTIONS = ("activation", "bottleneck", "norm", "positions", "qk_norm", "registers", "value_residual", "class_tokens")
# The epsilon of half of the norms, 1e-5 or DiT's 1e-6: the difference is below rounding. The class has no group norm.
_IGNORED = ("norm_eps", "norm_num_groups", "sample_size", "upcast_attention")


def read(path: Path, config: Json) -> dict[str, Any]:
    """Returns the section `model` of a DiTTransformer2DModel.

    Args:
      path: file of the config, for error messages.
      config: fields of the file.

    Raises:
      UserError: a field that our DiT does not have.
    """
    c = with_defaults(path, config, _DEFAULTS, single=("num_attention_heads", "attention_head_dim"))
    heads, depth = c["num_attention_heads"], c["attention_head_dim"]
    model = {
        "architecture": "dit",
        "patch": c["patch_size"],
        "width": heads * depth,
        "layers": c["num_layers"],
        "heads": heads,
        "dropout": float(c["dropout"]),
        "time_embedding": "ddpm",  # the frequencies that diffusers computes
    }
    expressed = write(model, side=c["sample_size"], in_channels=c["in_channels"], classes=c["num_embeds_ada_norm"])
    expressed["out_channels"] = c["out_channels"]
    check_expressed(path, c, expressed, ignored=_IGNORED)
    return model


def write(
    model: Mapping[str, Any], *, side: int, in_channels: int, classes: int, learns_variance: bool = False
) -> dict[str, Any]:
    """Returns the config of diffusers for a section `model`.

    Args:
      side: height and width of x_t.
      in_channels: channels of x_t.
      classes: number of classes, without the null class.
      learns_variance: whether the output has twice the channels.
    """
    return {
        **_DEFAULTS,
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": model["heads"],
        "attention_head_dim": model["width"] // model["heads"],
        "in_channels": in_channels,
        "out_channels": in_channels * (2 if learns_variance else 1),
        "num_layers": model["layers"],
        "dropout": model.get("dropout", 0.0),
        "sample_size": side,
        "patch_size": model["patch"],
        "num_embeds_ada_norm": classes,
        "norm_eps": 1e-6,
    }


def check_options(model: Mapping[str, Any], *, diffusers: bool) -> None:
    """Checks that published files of DiT can have the options of a section `model`.

    Args:
      model: the section.
      diffusers: whether the file is that of diffusers' class, whose MLP has one width.

    Raises:
      UserError: an option that changes what the network computes.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(DiT)}
    for name in (*_OPTIONS, *["mlp_ratio"] * diffusers):
        if (value := model.get(name, defaults[name])) != defaults[name]:
            raise UserError(
                f"model.{name}={value}: files of DiT do not have this option; only {defaults[name]} is supported"
            )


def table(model: Mapping[str, Any]) -> Table:
    """Returns the table of the transformer's tensors, for paths below its parameters."""
    return dit.diffusers(patch=model["patch"], layers=model["layers"], time_embedding=model["time_embedding"])
