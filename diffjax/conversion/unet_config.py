"""Configs of diffusers' UNet2DModel and UNet2DConditionModel, and the section `model` of ours."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffjax.conversion.components import Json, check_expressed, with_defaults
from diffjax.models.diffusion.condition_kinds import GuidanceScale
from diffjax.nn.layers import level_widths, num_groups
from diffjax.nn.unet import UNet
from diffjax.published.folders import refused
from diffjax.published.table import Order, Table
from diffjax.published.tables import unet

_SHARED = {  # defaults that both classes share
    "sample_size": None,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "class_embed_type": None,
    "num_class_embeds": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
}
_PIXELS = {
    **_SHARED,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "downsample_type": "conv",
    "upsample_type": "conv",
    "attn_norm_num_groups": None,
    "add_attention": True,
    "num_train_timesteps": None,
}
_CONTEXT = {
    **_SHARED,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "time_cond_proj_dim": None,
    "addition_embed_type_num_heads": 64,
}
_IGNORED = (
    *("sample_size", "upcast_attention", "num_train_timesteps"),  # the last: of learned time embeddings
    *("use_memory_efficient_attention", "split_head_dim"),  # of Flax classes
)
_CONVENTIONS = {"ddpm": (False, 1), "adm": (True, 0)}  # flip_sin_to_cos, freq_shift
_PADDINGS = {"asymmetric": 0, "symmetric": 1}


def read(path: Path, config: Json, *, side: int) -> dict[str, Any]:
    """Returns the section `model` of a UNet2DModel or a UNet2DConditionModel.

    Args:
      path: file of the config, for error messages.
      config: fields of the file.
      side: height and width of x_t.

    Raises:
      UserError: a field that our UNet does not have.
    """
    conditional = config.get("_class_name") == "UNet2DConditionModel"
    c = with_defaults(path, config, _CONTEXT if conditional else _PIXELS)
    widths, types = c["block_out_channels"], c["down_block_types"]
    if not isinstance(types, list | tuple) or len(types) != len(widths):
        raise refused(path, "down_block_types", types, "must have one entry per level")
    for name in ("layers_per_block", *(() if conditional else ("attention_head_dim",))):
        if isinstance(c[name], list | tuple):
            raise refused(path, name, c[name], "must be one number for all levels")
    attends = ["Attn" in str(name) for name in types]
    simple = any("SimpleCrossAttn" in str(name) for name in types)
    residual = simple or any("Resnet" in str(name) for name in types) or c.get("downsample_type") == "resnet"
    if simple and (type(c["attention_head_dim"]) is not int or c["norm_eps"] != 1e-5):
        fields = {name: c[name] for name in ("attention_head_dim", "norm_eps")}
        raise refused(path, "down_block_types", types, f"requires one attention_head_dim, and norm_eps=1e-5: {fields}")
    channels = widths[0]
    model: dict[str, Any] = {
        "channels": channels,
        "multipliers": tuple(w // channels if w % channels == 0 else w / channels for w in widths),
        "blocks": c["layers_per_block"],
        "attention_resolutions": tuple(side >> level for level, attending in enumerate(attends) if attending),
        "dropout": float(c["dropout"]),
        "time_conditioning": "scale_shift" if c["resnet_time_scale_shift"] == "scale_shift" else "add",
        "resample": "residual" if residual else "conv",
        "norm_groups": c["norm_num_groups"],
        "norm_min_channels": 0,
        "norm_epsilon": float(c["norm_eps"]),
        "time_embedding": "adm" if c["flip_sin_to_cos"] else "ddpm",
        "downsample_padding": "symmetric" if c["downsample_padding"] else "asymmetric",
        "initializer": "torch",
    }
    if conditional and not simple:
        model["transformer_depth"] = c["transformer_layers_per_block"]
    elif not c.get("add_attention", True):
        model["middle_attention"] = False
    model |= _heads(c["attention_head_dim"], widths, heads=conditional and not simple)
    expressed = write(
        model,
        side=side,
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        num_label_embeddings=c["num_class_embeds"] or 0,
        context=c.get("cross_attention_dim") or 0 if conditional else 0,
        linear=bool(c.get("use_linear_projection", False)),
        guidance_scale=bool(c.get("time_cond_proj_dim")),
    )
    check_expressed(path, c, _like(expressed, c), ignored=_IGNORED)
    return model


def write(
    model: Mapping[str, Any],
    *,
    side: int,
    in_channels: int,
    out_channels: int,
    num_label_embeddings: int = 0,
    context: int = 0,
    linear: bool = False,
    guidance_scale: bool = False,
) -> dict[str, Any]:
    """Returns diffusers' config for a section `model`: of a UNet2DConditionModel with a `context`, else a UNet2DModel.

    With a context, but without spatial transformers, it has the blocks of unCLIP's decoder (SimpleCrossAttn), and its
    other conditions are added to the embedding of the timestep outside of it.

    Args:
      side: height and width of x_t.
      in_channels: channels of the network's input.
      out_channels: channels of its output.
      num_label_embeddings: rows of the table of labels.
      context: width of the context; 0: none.
      linear: whether spatial transformers have linear projections instead of 1x1 convolutions.
      guidance_scale: whether the scale of guidance is an input, as of latent consistency models.
    """
    levels, residual = len(model["multipliers"]), model.get("resample") == "residual"
    widths = [int(model["channels"] * factor) for factor in model["multipliers"]]
    attends = [side >> level in model["attention_resolutions"] for level in range(levels)]
    flip, shift = _CONVENTIONS[model.get("time_embedding", "ddpm")]
    scale_shift = model.get("time_conditioning", "add") == "scale_shift"
    simple = bool(context) and not model.get("transformer_depth", 0)
    kind = "SimpleCrossAttn" if simple else "CrossAttn" if context else "Attn"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
    config: dict[str, Any] = {
        **(_CONTEXT if context else _PIXELS),
        "_class_name": "UNet2DConditionModel" if context else "UNet2DModel",
        "sample_size": side,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": widths,
        "down_block_types": [f"{kind}DownBlock2D" if attending else plain[0] for attending in attends],
        "up_block_types": [f"{kind}UpBlock2D" if attending else plain[1] for attending in reversed(attends)],
        "layers_per_block": model["blocks"],
        "dropout": model.get("dropout", 0.0),
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "norm_num_groups": model["norm_groups"],
        "norm_eps": model.get("norm_epsilon", 1e-6),
        "flip_sin_to_cos": flip,
        "freq_shift": shift,
        "downsample_padding": _PADDINGS[model.get("downsample_padding", "asymmetric")],
        "num_class_embeds": num_label_embeddings or None,
    }
    heads, depth = model.get("heads", 1), model.get("head_channels")
    if simple:
        config |= {"attention_head_dim": depth, "cross_attention_dim": context, "class_embed_type": "identity"}
        config["mid_block_type"] = "UNetMidBlock2DSimpleCrossAttn"
    elif context:
        # diffusers reads attention_head_dim of this class as the number of heads
        config["attention_head_dim"] = [width // depth for width in widths] if depth else heads
        config["cross_attention_dim"] = context
        config["transformer_layers_per_block"] = model["transformer_depth"]
        config["use_linear_projection"] = linear
        config["time_cond_proj_dim"] = GuidanceScale.WIDTH if guidance_scale else None
    else:
        config["attention_head_dim"] = depth
        config["downsample_type"] = config["upsample_type"] = "resnet" if residual and any(attends) else "conv"
        config["attn_norm_num_groups"] = model["norm_groups"] if scale_shift else None
        config["add_attention"] = model.get("middle_attention", True)
    return config


def check_writable(path: Path, model: Mapping[str, Any], written: Json, *, side: int) -> None:
    """Checks that `write` lost no field of a section `model`: reads its result again.

    Raises:
      UserError: a field that diffusers' classes do not have.
    """
    fields = {field.name: field.default for field in dataclasses.fields(UNet)}
    back = {**fields, **read(path, written, side=side)}
    ours = {**fields, "heads": back["heads"] if model.get("head_channels") else fields["heads"], **model}
    for name in model:
        if name in ("architecture", "initializer", "remat", "attention", "norm_min_channels"):
            continue
        if name in back and tuple_of(ours[name]) != tuple_of(back[name]):
            raise refused(path, f"model.{name}", model[name], f"cannot be exported to diffusers; {back[name]} can")
    groups, least = model["norm_groups"], model.get("norm_min_channels", 0)
    for width in level_widths(model["channels"], model["multipliers"]):
        if num_groups(width, groups, least) != groups:
            raise refused(
                path, "model.norm_min_channels", least, f"gives {width} channels fewer groups, which diffusers cannot"
            )


def tuple_of(value: Any) -> Any:
    """Returns a value with lists as tuples, whose order is of no importance where it is that of resolutions."""
    return tuple(sorted(value)) if isinstance(value, list | tuple) else value


def table(
    model: Mapping[str, Any], *, conditional: bool, linear: bool = False, input_order: Order | None = None
) -> Table:
    """Returns the table of the U-Net's tensors, for paths below its parameters."""
    return unet.diffusers(
        levels=len(model["multipliers"]),
        residual=model.get("resample") == "residual",
        transformer=conditional,
        linear=linear,
        input_order=input_order,
    )


def _heads(dim: Any, widths: Sequence[int], *, heads: bool) -> dict[str, int]:
    """Returns model.heads or model.head_channels for `attention_head_dim`; `heads`: it counts heads."""
    if dim is None:
        return {"heads": 1}
    if not heads:
        return {"head_channels": dim}
    if isinstance(dim, list | tuple):
        depths = {w // h for w, h in zip(widths, dim, strict=False)}
        if len(depths) == 1:
            return {"head_channels": depths.pop()}
        return {"heads": dim[0]}
    return {"heads": dim}


def _like(expressed: dict[str, Any], config: Json) -> dict[str, Any]:
    """Returns fields in the forms in which `config` may give equal values."""
    dim, theirs = expressed["attention_head_dim"], config["attention_head_dim"]
    if isinstance(theirs, list | tuple) and not isinstance(dim, list | tuple):
        expressed["attention_head_dim"] = [dim] * len(expressed["block_out_channels"])
    depth = config.get("transformer_layers_per_block")
    if isinstance(depth, list | tuple):
        expressed["transformer_layers_per_block"] = [expressed["transformer_layers_per_block"]] * len(depth)
    if not any("Attn" in str(name) for name in config["down_block_types"]):  # they are of blocks with attention
        expressed |= {name: config[name] for name in ("downsample_type", "upsample_type") if name in config}
    width = config.get("cross_attention_dim")
    if isinstance(width, list | tuple):
        expressed["cross_attention_dim"] = [expressed["cross_attention_dim"]] * len(width)
    return expressed
