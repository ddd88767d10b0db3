"""Configs of diffusers' AutoencoderKL and VQModel, and ours: system=vae and vqvae with model.architecture=ldm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffjax.conversion.components import Json, check_expressed, with_defaults
from diffjax.latents import codebook, statistics
from diffjax.models.parameter_paths import flatten
from diffjax.published.folders import refused
from diffjax.published.table import Block, Constant, Table, Tensor
from diffjax.published.tables import autoencoder
from diffjax.runs.config_files import load_file
from diffjax.runs.loading import Run

_SHARED = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
}
_KL = {
    **_SHARED,
    "latent_channels": 4,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
_VQ = {
    **_SHARED,
    "latent_channels": 3,
    "num_vq_embeddings": 256,
    "vq_embed_dim": None,
    "norm_type": "group",
    "lookup_from_codebook": False,
}
_IGNORED = ("sample_size", "force_upcast", "scaling_factor")
CLASSES = ("AutoencoderKL", "VQModel")


def read(path: Path, config: Json, *, image_size: int | None = None) -> ConfigDict:
    """Returns our config of an AutoencoderKL or a VQModel.

    Args:
      path: file of the config, for error messages.
      config: fields of the file.
      image_size: height and width of the images; None: `sample_size` of the config.

    Raises:
      UserError: a field that our networks do not have.
    """
    is_vq = config["_class_name"] == "VQModel"
    c = with_defaults(path, config, _VQ if is_vq else _KL)
    side = image_size or c["sample_size"]
    if isinstance(side, list | tuple):
        side = side[0]
    widths, types = c["block_out_channels"], c["down_block_types"]
    if not isinstance(types, list | tuple) or len(types) != len(widths):
        raise refused(path, "down_block_types", types, "must have one entry per level")
    if any(width % widths[0] for width in widths):
        raise refused(path, "block_out_channels", widths, "must be multiples of the first")
    result = load_file("configs/published/vqgan.py" if is_vq else "configs/published/autoencoder_kl.py")
    result = ConfigDict(result.to_dict())
    result.data.update(image_size=side, channels=c["in_channels"])
    result.model.update(
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=c["layers_per_block"],
        attention_resolutions=tuple(side >> level for level, name in enumerate(types) if "Attn" in str(name)),
        norm_groups=c["norm_num_groups"],
        norm_min_channels=0,
        latent_channels=(c["vq_embed_dim"] or c["latent_channels"]) if is_vq else c["latent_channels"],
        z_channels=c["latent_channels"] if is_vq or c["use_quant_conv"] else 0,
    )
    if not c["mid_block_add_attention"]:
        result.model.middle_attention = False
    if is_vq:
        result.codebook.size = c["num_vq_embeddings"]
    expressed = write(result)
    if is_vq and c["vq_embed_dim"] == c["latent_channels"]:
        expressed["vq_embed_dim"] = c["vq_embed_dim"]
    check_expressed(path, c, expressed, ignored=_IGNORED)
    return result


def write(config: ConfigDict, *, scaling_factor: float = 1.0) -> dict[str, Any]:
    """Returns diffusers' config of an autoencoder of ours.

    Args:
      config: config of a run with model.architecture=ldm.
      scaling_factor: factor that gives latents unit variance.
    """
    model, is_vq = config.model, config.system == "vqvae"
    attends = [config.data.image_size >> i in model.attention_resolutions for i in range(len(model.multipliers))]
    fields: dict[str, Any] = {
        **(_VQ if is_vq else _KL),
        "_class_name": "VQModel" if is_vq else "AutoencoderKL",
        "in_channels": config.data.channels,
        "out_channels": config.data.channels,
        "sample_size": config.data.image_size,
        "block_out_channels": [model.channels * factor for factor in model.multipliers],
        "down_block_types": ["AttnDownEncoderBlock2D" if attending else "DownEncoderBlock2D" for attending in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        "layers_per_block": model.blocks,
        "norm_num_groups": model.norm_groups,
        "scaling_factor": scaling_factor,
        "mid_block_add_attention": model.get("middle_attention", True),
    }
    if is_vq:
        fields |= {
            "latent_channels": model.z_channels,
            "vq_embed_dim": None if model.latent_channels == model.z_channels else model.latent_channels,
            "num_vq_embeddings": config.codebook.size,
        }
    else:
        has_projections = bool(model.get("z_channels", 0))
        fields |= {
            "latent_channels": model.latent_channels,
            "use_quant_conv": has_projections,
            "use_post_quant_conv": has_projections,
        }
    return fields


def check_scaling_factor(path: Path, factor: Any) -> None:
    """Raises UserError for a factor of latents that is not from 1e-6 to 1e6, so that float32 has its inverse square."""
    if not isinstance(factor, int | float) or not 1e-6 <= factor <= 1e6:
        raise refused(path, "scaling_factor", factor, "must be a number from 1e-6 to 1e6")


def table(config: ConfigDict, naming: Mapping[str, Any], scaling_factor: float) -> Table:
    """Returns the table of an autoencoder's variables.

    Args:
      config: config of a run with model.architecture=ldm.
      naming: table of the networks: `autoencoder.diffusers(...)` or `autoencoder.compvis()`.
      scaling_factor: factor that gives latents unit variance.
    """
    result: dict[str, Any] = {
        "latents/mean": Constant(0.0),
        "latents/square": Constant(1.0 / scaling_factor**2),
    }
    if config.system == "vqvae":
        books = Tensor("quantize.embedding.weight", lambda tensor: tensor[None], lambda value: value[0])
        result[r"params/model/codebook/[^/]+/books"] = books
        result[r"codebook/[^/]+/counts"] = Constant(1.0 / config.codebook.size)
        result[r"codebook/[^/]+/(?:usage|shift)"] = Constant(0.0)
    return {**result, "params/model": Block("", naming)}


def diffusers_table(config: ConfigDict, scaling_factor: float) -> Table:
    """Returns the table of an autoencoder's variables with diffusers' names."""
    return table(config, autoencoder.diffusers(levels=len(config.model.multipliers)), scaling_factor)


def writable(run: Run) -> tuple[ConfigDict, dict[str, np.ndarray], float]:
    """Returns the config of an autoencoder with its channels, its variables by path, and the factor of its latents.

    The discriminator is left out, and the codebook is one parameter, for any update rule.

    Raises:
      UserError: a codebook that other libraries do not have.
    """
    scale = float(f"{statistics.scale(run.variables['latents']):.6g}")  # stored as a mean square in float32
    variables = {name: tree for name, tree in run.variables.items() if name != "frozen"}
    params = dict(variables["params"]["model"])
    if run.config.system == "vqvae":
        c = run.config.codebook
        if c.kind != "vq" or c.cosine or len(variables["codebook"]) > 1:
            raise refused(run.workdir.config, "codebook.kind", c.kind, "files have one codebook, by distance (vq)")
        ((name, state),) = variables["codebook"].items()
        books = codebook.means(state) if "sums" in state else params["codebook"][name]["books"] + state["shift"]
        params["codebook"] = {name: {"books": books}}
        state = {"counts": state["counts"], "usage": state["usage"], "shift": np.zeros_like(books)}
        variables["codebook"] = {name: state}
    config = ConfigDict(run.config.to_dict())
    config.data.channels = run.spec.channels
    arrays = {path: np.asarray(leaf) for path, leaf in flatten({**variables, "params": {"model": params}}).items()}
    return config, arrays, scale
