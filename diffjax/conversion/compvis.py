"""Single files of CompVis and Stability: Stable Diffusion, latent diffusion, and first stages by themselves.

Such a file has the tensors of a whole Lightning module: the U-Net under `model.diffusion_model`, its averaged weights
under `model_ema`, the autoencoder under `first_stage_model`, and the encoder of the condition under `cond_stage_model`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffjax.conversion import autoencoder_config, clip
from diffjax.conversion.components import ImportedRun, below
from diffjax.conversion.diffusers_folder import inpainting_order
from diffjax.errors import UserError, excerpt
from diffjax.models.parameter_paths import flatten
from diffjax.published import table
from diffjax.published.lazy import LazyTensor
from diffjax.published.table import Block, Table, Tensor
from diffjax.published.tables import autoencoder, unet
from diffjax.runs.dependencies import referenced_run
from diffjax.runs.loading import Run, load

Tensors = Mapping[str, LazyTensor]

SYSTEMS = ("latent", "vae", "vqvae")
_UNET, _AVERAGED, _CODEC, _TEXT = (
    "model.diffusion_model.",
    "model_ema.diffusion_model",
    "first_stage_model.",
    "cond_stage_model.",
)
_LABELS = f"{_TEXT}embedding.weight"
_FIRST_STAGE_IGNORED = (r"loss\..*", r"(?:model_)?ema.*")
_SCALE = "scale_factor"  # of the latents, in files of models that measured it
_BUFFERS = re.compile(rf"betas|.*(?:alphas_cumprod|posterior_)\w*|logvar|lvlb_weights|model_ema\..*|{_SCALE}")


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
    if config.system not in SYSTEMS:
        raise UserError(f"--config: system={config.system} is not in files of published.naming=compvis; use another")
    names = below(tensors, _UNET)
    if not names:
        raise UserError(f"{path} has no {_UNET}*; it is not the file of a latent diffusion model")
    averaged = {name: f"{_AVERAGED}{name.replace('.', '')}" for name in names}
    if all(name in tensors for name in averaged.values()):
        names = {name: tensors[other] for name, other in averaged.items()}
    scale = config.published.scaling_factor
    if _SCALE in tensors:
        scale = float(f"{tensors[_SCALE].read():.7g}")  # as many digits as float32 has
    _check_rest(path, config, tensors)
    parts = {"codec": _first_stage(path, config.parts.codec, below(tensors, _CODEC), scale)}
    if "clip" in config.parts:
        parts["clip"] = clip.read_single_file(path, config.parts.clip, below(tensors, _TEXT))
    if _has_label_token(config):
        names = {**names, _LABELS: tensors[_LABELS]}
    tokenizer = parts["clip"].tokenizer if "clip" in parts else None
    return ImportedRun(path, config, _table(config), names, tokenizer=tokenizer, parts=parts)


def write(run: Run) -> dict[str, LazyTensor]:
    """Returns the tensors of a file for a run: a whole latent diffusion model with its parts, or a first stage.

    Raises:
      UserError: an option that such files do not have.
    """
    if run.config.system in ("vae", "vqvae"):
        config, variables, scale = autoencoder_config.writable(run)
        return table.tensors_of(autoencoder_config.table(config, autoencoder.compvis(), scale), variables)
    params = {"params": run.variables["params"]}
    tensors = table.tensors_of(_table(run.config), {path: np.asarray(leaf) for path, leaf in flatten(params).items()})
    prefix = {name: "" if name == _LABELS else _UNET for name in tensors}
    tensors = {prefix[name] + name: tensor for name, tensor in tensors.items()}
    codec = load(referenced_run(run.config, "codec", run.workdir.path))
    tensors |= {_CODEC + name: tensor for name, tensor in write(codec).items()}
    tensors[_SCALE] = LazyTensor.of(np.array(autoencoder_config.writable(codec)[2], np.float32))
    if "clip" in run.config:
        text = load(referenced_run(run.config, "clip", run.workdir.path))
        arrays = {path: np.asarray(leaf) for path, leaf in flatten({"params": text.variables["params"]}).items()}
        middle = "transformer." if text.config.published.naming == "transformers" else "model."
        tensors |= {
            f"{_TEXT}{middle}{name}": tensor
            for name, tensor in table.tensors_of(clip.table(text.config), arrays).items()
        }
    return tensors


def _check_rest(path: Path, config: ConfigDict, tensors: Tensors) -> None:
    """Raises UserError for tensors of a part that the config does not have."""
    known = [_UNET, _CODEC]
    if "clip" in config.parts or _has_label_token(config):
        known.append(_TEXT)
    rest = sorted(name for name in tensors if not name.startswith(tuple(known)) and not _BUFFERS.fullmatch(name))
    if rest:
        raise UserError(f"{path}: {excerpt(rest[0])} is not part of the model of --config; use another variant of it")
    if _has_label_token(config) and _LABELS not in tensors:
        raise UserError(f"{path}: {_LABELS} is missing; use another variant of --config")


def _has_label_token(config: ConfigDict) -> bool:
    return "label_token" in config.get("conditions", {})


def _table(config: ConfigDict) -> Table:
    """Returns the table of a diffusion model's variables, without the prefix of its network."""
    label = {"params/model/conditions/label_token/table": Tensor(_LABELS)} if _has_label_token(config) else {}
    return {**label, "params/model": Block("", _unet_table(config))}


def _unet_table(config: ConfigDict) -> Table:
    model, latents = config.model, config.parts.codec.model
    side, levels = config.data.image_size // 2 ** (len(latents.multipliers) - 1), len(model.multipliers)
    inpaints = "masked_image" in config.get("conditions", {})
    return unet.openai(
        blocks=model.blocks,
        levels=levels,
        attention_levels=[i for i in range(levels) if side >> i in model.attention_resolutions],
        residual=model.get("resample", "conv") == "residual",
        transformer=bool(model.get("transformer_depth", 0)),
        linear="head_channels" in model,
        input_order=inpainting_order(latents.latent_channels) if inpaints else None,
    )


def _first_stage(path: Path, config: ConfigDict, tensors: Tensors, scale: float) -> ImportedRun:
    autoencoder_config.check_scaling_factor(path, scale)
    names = autoencoder_config.table(config, autoencoder.compvis(), scale)
    return ImportedRun(path, config, names, tensors, ignored=_FIRST_STAGE_IGNORED)
