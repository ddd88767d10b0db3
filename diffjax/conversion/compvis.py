"""Single files of CompVis and Stability: Stable Diffusion, latent diffusion, and first stages by themselves.

Such a file has the tensors of a whole Lightning module: the U-Net under `model.diffusion_model`, its averaged weights
under `model_ema`, the autoencoder under `first_stage_model`, and the encoder of the condition under `cond_stage_model`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax.conversion import autoencoder_config, clip
from diffjax.conversion.components import ImportedRun, below
from diffjax.conversion.diffusers_folder import inpainting_order
from diffjax.errors import UserError
from diffjax.published.lazy import LazyTensor
from diffjax.published.table import Block, Table, Tensor
from diffjax.published.tables import autoencoder, unet

Tensors = Mapping[str, LazyTensor]

_UNET, _AVERAGED, _CODEC, _TEXT = (
    "model.diffusion_model.",
    "model_ema.diffusion_model",
    "first_stage_model.",
    "cond_stage_model.",
)
_FIRST_STAGE_IGNORED = (r"loss\..*", r"(?:model_)?ema.*")


def read(path: Path, config: ConfigDict, tensors: Tensors) -> ImportedRun:
    """Returns the run of a file.

    Args:
      path: the file, for error messages.
      config: config of the network in the file, of system=latent, vae or vqvae.
      tensors: tensors of the file.

    Raises:
      UserError: the file has no such network.
    """
    if config.system in ("vae", "vqvae"):
        prefixed = below(tensors, _CODEC)  # of the file of a whole model
        return _first_stage(path, config, prefixed or tensors, config.published.scaling_factor)
    if config.system != "latent":
        raise UserError(f"--config: system={config.system} is not in files of published.naming=compvis; use another")
    names = below(tensors, _UNET)
    if not names:
        raise UserError(f"{path} has no {_UNET}*; it is not the file of a latent diffusion model")
    averaged = {name: f"{_AVERAGED}{name.replace('.', '')}" for name in names}
    if all(name in tensors for name in averaged.values()):
        names = {name: tensors[other] for name, other in averaged.items()}
    scale = config.published.scaling_factor
    if "scale_factor" in tensors:
        scale = float(tensors["scale_factor"].read())
    codec = _first_stage(path, config.parts.codec, below(tensors, _CODEC), scale)
    parts = {"codec": codec}
    label: dict[str, Any] = {}
    if "clip" in config.get("parts", {}):
        parts["clip"] = clip.read_single_file(path, config.parts.clip, below(tensors, _TEXT))
    elif "label_token" in config.get("conditions", {}):
        label = {"params/model/conditions/label_token/table": Tensor(f"{_TEXT}embedding.weight")}
        names = {**names, f"{_TEXT}embedding.weight": tensors[f"{_TEXT}embedding.weight"]}
    table: Table = {**label, "params/model": Block("", _unet_table(config))}
    tokenizer = parts["clip"].tokenizer if "clip" in parts else None
    return ImportedRun(path, config, table, names, tokenizer=tokenizer, parts=parts)


def _unet_table(config: ConfigDict) -> Table:
    model, latents = config.model, config.parts.codec.model
    side, levels = config.data.image_size // 2 ** (len(latents.multipliers) - 1), len(model.multipliers)
    return unet.openai(
        blocks=model.blocks,
        levels=levels,
        attention_levels=[i for i in range(levels) if side >> i in model.attention_resolutions],
        residual=model.get("resample", "conv") == "residual",
        transformer=bool(model.get("transformer_depth", 0)),
        linear="head_channels" in model,
        input_order=inpainting_order(latents.latent_channels)
        if "masked_image" in config.get("conditions", {})
        else None,
    )


def _first_stage(path: Path, config: ConfigDict, tensors: Tensors, scale: float) -> ImportedRun:
    table = autoencoder_config.table(config, autoencoder.compvis(), scale)
    return ImportedRun(path, config, table, tensors, ignored=_FIRST_STAGE_IGNORED)
