"""Exports runs as folders of diffusers, which `from_pretrained` loads."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffjax import io
from diffjax.conversion import (
    autoencoder_config,
    clip,
    components,
    dit_config,
    scheduler_config,
    tiny_config,
    unet_config,
)
from diffjax.conversion.diffusers_folder import inpainting_order
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.parameter_paths import flatten
from diffjax.published import safetensors_file, table
from diffjax.published.folders import refused
from diffjax.published.table import Block, Table
from diffjax.runs.dependencies import referenced_run
from diffjax.runs.loading import Run, load

_VERSION = "0.30.0"  # of diffusers, whose fields are written; later versions read them


def export_diffusers(run: Run, out: Path) -> str:
    """Writes a run as a folder of diffusers.

    Args:
      run: a diffusion model on pixels or latents, an autoencoder, or a CLIP, which is one of transformers.
      out: folder to write, which must exist.

    Returns:
      The class that loads the folder, such as "DDIMPipeline".

    Raises:
      UserError: the run has a part or an option that diffusers does not have; the message names the config field.
    """
    exporters: dict[str, Callable[[Run, Path], str]] = {
        "ddpm": _export_pixels,
        "latent": _export_latents,
        "vae": _export_autoencoder,
        "vqvae": _export_autoencoder,
        "clip": _export_clip,
    }
    if run.config.system not in exporters:
        path = run.workdir.config
        raise refused(path, "system", run.config.system, f"--format=diffusers requires one of {', '.join(exporters)}")
    return exporters[run.config.system](run, out)


def _export_pixels(run: Run, out: Path) -> str:
    network, classes = _write_network(run, out)
    scheduler = _write_scheduler(run, out)
    if network != "UNet2DModel" or classes:  # no pipeline of diffusers passes labels to a UNet2DModel
        return network
    pipeline = "DDPMPipeline" if scheduler == "DDPMScheduler" else "DDIMPipeline"
    _write_index(out, pipeline, unet=network, scheduler=scheduler)
    return pipeline


def _export_latents(run: Run, out: Path) -> str:
    codec = load(referenced_run(run.config, "codec", run.workdir.path))
    if "clip_text" in _diffusion_model(run).conditions.each:
        return _export_stable_diffusion(run, codec, out)
    network, classes = _write_network(run, out)
    scheduler = _write_scheduler(run, out)
    if network == "DiTTransformer2DModel":
        vae = _export_autoencoder(codec, out / "vae")
        _write_index(out, "DiTPipeline", transformer=network, vae=vae, scheduler=scheduler)
        return "DiTPipeline"
    vqvae = _export_autoencoder(codec, out / "vqvae")
    if classes:
        return network
    _write_index(out, "LDMPipeline", vqvae=vqvae, unet=network, scheduler=scheduler)
    return "LDMPipeline"


def _export_clip(run: Run, out: Path) -> str:
    config = ConfigDict(run.config.to_dict())
    config.data.channels = run.spec.channels
    return clip.write_clip(run.workdir.config, config, run.variables, out, tokenizer=run.tokenizer)


def _export_stable_diffusion(run: Run, codec: Run, out: Path) -> str:
    text = load(referenced_run(run.config, "clip", run.workdir.path))
    network, _ = _write_network(run, out, context=text.clip.width)
    scheduler = _write_scheduler(run, out)
    vae = _export_autoencoder(codec, out / "vae")
    encoder = clip.write_clip(
        text.workdir.config,
        text.config,
        text.variables,
        out / "text_encoder",
        tokenizer=text.tokenizer,
        tokenizer_out=out / "tokenizer",
    )
    inpaints = "masked_image" in _diffusion_model(run).conditions.each
    pipeline = "StableDiffusionInpaintPipeline" if inpaints else "StableDiffusionPipeline"
    _write_index(out, pipeline, unet=network, vae=vae, scheduler=scheduler)
    index = components.read_json(out / "model_index.json")
    index |= {"text_encoder": ["transformers", encoder], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    _write_json(out / "model_index.json", index)
    return pipeline


def _export_autoencoder(run: Run, out: Path) -> str:
    config = run.config
    if config.model.architecture not in ("ldm", "taesd") or "pixelcnn" in config:
        architecture = config.model.architecture
        raise refused(run.workdir.config, "model.architecture", architecture, "must be ldm or taesd for diffusers")
    config, variables, scale = autoencoder_config.writable(run)
    if config.model.architecture == "taesd":
        written, names = tiny_config.write(config, scaling_factor=scale), tiny_config.table(config, scale)
    else:
        written = autoencoder_config.write(config, scaling_factor=scale)
        names = autoencoder_config.diffusers_table(config, scale)
    _write_component(out, written, names, variables)
    return written["_class_name"]


def _write_network(run: Run, out: Path, *, context: int = 0) -> tuple[str, int]:
    """Writes the network of a diffusion model; returns its class, and the rows of its table of labels.

    Args:
      context: width of the context, the states of CLIP's tokens; 0: none.
    """
    diffusion, config, path = _diffusion_model(run), run.config, run.workdir.config
    written_conditions = ("clip_text", "masked_image") if context else ("label",)
    if others := [name for name in diffusion.conditions.each if name not in written_conditions]:
        raise refused(path, "conditions", others, "cannot be exported to diffusers")
    side, *_, channels = diffusion.data_space.shape
    rows, learns_variance = diffusion.conditions.num_label_embeddings, diffusion.process.learns_variance
    model = config.model.to_dict()
    if model.get("architecture", "unet") == "dit":
        if not diffusion.conditions.supports_guidance:
            raise refused(
                path, "diffusion.label_dropout", 0.0, "must be positive for diffusers, which has a null class"
            )
        model = {"time_embedding": "ddpm", **model}
        written = dit_config.write(
            model, side=side, in_channels=channels, classes=rows - 1, learns_variance=learns_variance
        )
        names, folder = dit_config.table(model), out / "transformer"
    else:
        inpaints, linear = "masked_image" in diffusion.conditions.each, "head_channels" in model
        written = unet_config.write(
            model,
            side=side,
            in_channels=2 * channels + 1 if inpaints else channels,
            out_channels=channels * (2 if learns_variance else 1),
            num_label_embeddings=rows,
            context=context,
            linear=linear,
        )
        unet_config.check_writable(path, model, written, side=side)
        order = inpainting_order(channels) if inpaints else None
        names = unet_config.table(model, conditional=bool(context), linear=linear, input_order=order)
        folder = out / "unet"
    _write_component(folder, written, {"params/model": Block("", names)}, {"params": run.variables["params"]})
    return written["_class_name"], rows


def _write_scheduler(run: Run, out: Path) -> str:
    """Writes the scheduler of a diffusion model; returns its class."""
    scheduler = scheduler_config.write(run.config, path=run.workdir.path)
    _write_json(out / "scheduler" / "scheduler_config.json", scheduler)
    return scheduler["_class_name"]


def _diffusion_model(run: Run) -> DiffusionModel:
    assert isinstance(run.system, DiffusionModel)
    return run.system


def _write_component(out: Path, config: Mapping[str, Any], names: Table, variables: Mapping[str, Any]) -> None:
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    _write_json(out / "config.json", config)
    tensors = table.tensors_of(names, arrays)
    safetensors_file.save(out / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})


def _write_index(out: Path, pipeline: str, **classes: str) -> None:
    index = {name: ["diffusers", class_name] for name, class_name in classes.items()}
    _write_json(out / "model_index.json", {"_class_name": pipeline, **index})


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_text(path, json.dumps({**fields, "_diffusers_version": _VERSION}, indent=2, sort_keys=True) + "\n")
