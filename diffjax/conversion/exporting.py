"""Exports runs as folders of diffusers, which `from_pretrained` loads."""

import dataclasses
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
    prior_config,
    scheduler_config,
    tiny_config,
    unclip_config,
    unet_config,
)
from diffjax.conversion.diffusers_folder import inpainting_order
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.parameter_paths import flatten
from diffjax.published import safetensors_file, table
from diffjax.published.folders import refused
from diffjax.published.lazy import LazyTensor
from diffjax.published.table import Block, Table
from diffjax.runs.config_files import flatten as flatten_config
from diffjax.runs.dependencies import referenced_run
from diffjax.runs.loading import Run, load

_VERSION = "0.30.0"  # of diffusers, whose fields are written; later versions read them
_TRAINING_ONLY = ("alignment", "weighting")  # parameters that samples do not use


def export_diffusers(run: Run, out: Path) -> str:
    """Writes a run as a folder of diffusers.

    Args:
      run: a diffusion model on pixels or latents, a pipeline of unCLIP, an autoencoder, or a CLIP, which is one of
        transformers.
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
        "unclip": _export_unclip,
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
    conditions = _diffusion_model(run).conditions
    if conditions.guidance_scale:
        pipeline = "LatentConsistencyModelPipeline"
    else:
        inpaints = "masked_image" in conditions.each
        pipeline = "StableDiffusionInpaintPipeline" if inpaints else "StableDiffusionPipeline"
    _write_index(out, pipeline, unet=network, vae=vae, scheduler=scheduler)
    absent = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    _add_text_encoder(out, text, **absent)
    return pipeline


def _add_text_encoder(out: Path, text: Run, **entries: Any) -> None:
    """Writes the text encoder and the tokenizer of a pipeline; adds them and other `entries` to its index."""
    encoder = clip.write_clip(
        text.workdir.config,
        text.config,
        text.variables,
        out / "text_encoder",
        tokenizer=text.tokenizer,
        tokenizer_out=out / "tokenizer",
    )
    index = components.read_json(out / "model_index.json")
    index |= {"text_encoder": ["transformers", encoder], "tokenizer": ["transformers", "CLIPTokenizer"], **entries}
    _write_json(out / "model_index.json", index)


def _export_unclip(run: Run, out: Path) -> str:
    config, path = run.config, run.workdir.config
    for name in ("ar_prior", "pca", "upsampler_2"):
        if config.get(name):
            raise refused(path, name, config[name], "UnCLIPPipeline does not have it; set it to ''")
    for name in ("prior", "upsampler"):
        if not config.get(name):
            raise refused(path, name, "", "UnCLIPPipeline requires it; name a run")
    text, prior, decoder, upsampler = (
        load(referenced_run(config, name, run.workdir.path)) for name in ("clip", "prior", "decoder", "upsampler")
    )
    last = upsampler
    if upsampler.config.get("last_step"):
        last = load(referenced_run(upsampler.config, "last_step", upsampler.workdir.path))
    classes = {
        "prior": _export_prior(prior, text, out / "prior"),
        "decoder": _export_decoder(decoder, text, out),
        "super_res_first": _export_upsampler(upsampler, out / "super_res_first"),
        "super_res_last": _export_upsampler(last, out / "super_res_last"),
    }
    for name, stage in (("prior", prior), ("decoder", decoder), ("super_res", upsampler)):
        written = scheduler_config.write_unclip(stage.config, path=stage.workdir.path)
        _write_json(out / f"{name}_scheduler" / "scheduler_config.json", written)
        classes[f"{name}_scheduler"] = written["_class_name"]
    if scheduler_config.write_unclip(last.config, path=last.workdir.path) != written:
        raise refused(upsampler.workdir.config, "last_step", last.workdir.path.name, "must have the process of the run")
    _write_index(out, "UnCLIPPipeline", **classes)
    _add_text_encoder(out, _without_image_encoder(text), text_proj=["unclip", "UnCLIPTextProjModel"])
    return "UnCLIPPipeline"


def _without_image_encoder(run: Run) -> Run:
    """Returns the run of a CLIP with its text encoder alone."""
    config = ConfigDict(run.config.to_dict())
    if "image_encoder" in config:
        del config["image_encoder"]
    params = {"model": {"text": run.variables["params"]["model"]["text"]}}
    return dataclasses.replace(run, config=config, variables={"params": params})


def _export_prior(run: Run, text: Run, out: Path) -> str:
    """Writes the prior of unCLIP; returns its class."""
    _check_fields(run, {"conditions.clip_text": _UNCLIP_TEXT, "diffusion": {"standardize_embeddings": True}})
    model = run.config.model.to_dict()
    if others := {name: model[name] for name in ("mlp_ratio", "activation") if model.get(name, 4) not in (4, "gelu")}:
        raise refused(run.workdir.config, "model", others, "PriorTransformer has mlp_ratio=4 and activation=gelu only")
    written = prior_config.write(model, dimensions=text.clip.dimensions, length=text.config.text.length)
    variables = {name: run.variables[name] for name in ("params", "embeddings")}
    _write_component(out, written, prior_config.table(), variables)
    return written["_class_name"]


def _export_decoder(run: Run, text: Run, out: Path) -> str:
    """Writes the decoder of unCLIP, and the projections of its conditions, into folders of `out`; returns its class."""
    _check_conditions(run, "clip_text", "image_embedding")
    _check_fields(
        run,
        {
            "conditions.clip_text": {**_UNCLIP_TEXT, "mask_padding": True},
            "conditions.image_embedding": {"unit_length": False},
            "diffusion": {"variance": "learned_range"},
        },
    )
    conditions, path = run.config.conditions.to_dict(), run.workdir.config
    for name, field in (("clip_text", "width"), ("image_embedding", "tokens")):
        if not conditions[name][field]:
            raise refused(path, f"conditions.{name}.{field}", conditions[name][field], "must be positive for diffusers")
    model, (side, _, channels) = run.config.model.to_dict(), _diffusion_model(run).data_space.shape
    context = conditions["clip_text"]["width"]
    written = unet_config.write(model, side=side, in_channels=channels, out_channels=2 * channels, context=context)
    unet_config.check_writable(path, model, written, side=side)
    names = unclip_config.table(model, tokens=conditions["image_embedding"]["tokens"])
    tensors = _tensors(names, {"params": run.variables["params"]})
    projections = components.below(tensors, unclip_config.PREFIX)
    network = {name: tensor for name, tensor in tensors.items() if not name.startswith(unclip_config.PREFIX)}
    _save_component(out / "decoder", written, network)
    proj = unclip_config.write(conditions, dimensions=text.clip.dimensions, channels=model["channels"])
    _save_component(out / "text_proj", proj, projections)
    return written["_class_name"]


def _export_upsampler(run: Run, out: Path) -> str:
    """Writes an upsampler of unCLIP; returns its class."""
    _check_conditions(run, "low_res_image")
    _check_fields(
        run,
        {
            "conditions.low_res_image": {"level": False, "interpolation": "bicubic"},
            "diffusion": {"variance": "fixed_small"},
        },
    )
    model, (side, _, channels) = run.config.model.to_dict(), _diffusion_model(run).data_space.shape
    written = unet_config.write(model, side=side, in_channels=2 * channels, out_channels=channels)
    unet_config.check_writable(run.workdir.config, model, written, side=side)
    names: Table = {"params/model": Block("", unet_config.table(model, conditional=False))}
    _write_component(out, written, names, {"params": run.variables["params"]})
    return written["_class_name"]


_UNCLIP_TEXT = {"states": True, "embedding": True, "unit_length": False, "null": "empty"}
_MISSING = {"states": True, "unit_length": True, "null": "start", "level": True, "interpolation": "bilinear"}


def _check_fields(run: Run, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError for a field of a config with another value than UnCLIPPipeline has."""
    fields = flatten_config(run.config)
    for section, expected in sections.items():
        for name, value in expected.items():
            ours = fields.get(f"{section}.{name}", _MISSING.get(name, False))
            if ours != value:
                raise refused(run.workdir.config, f"{section}.{name}", ours, f"must be {value} for UnCLIPPipeline")


def _check_conditions(run: Run, *names: str) -> None:
    """Raises UserError for a model with other conditions than those of a class of diffusers."""
    if set(_diffusion_model(run).conditions.each) != set(names):
        conditions = list(_diffusion_model(run).conditions.each)
        raise refused(run.workdir.config, "conditions", conditions, f"must be {' and '.join(names)} for diffusers")


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
    written_conditions = ("clip_text", "masked_image", "guidance_scale") if context else ("label",)
    if others := [name for name in diffusion.conditions.each if name not in written_conditions]:
        raise refused(path, "conditions", others, "cannot be exported to diffusers")
    side, *_, channels = diffusion.data_space.shape
    rows, learns_variance = diffusion.conditions.num_label_embeddings, diffusion.process.learns_variance
    model = config.model.to_dict()
    architecture = model.get("architecture", "unet")
    if architecture not in ("unet", "dit"):
        raise refused(path, "model.architecture", architecture, "cannot be exported to diffusers; unet and dit can")
    if architecture == "dit":
        if not diffusion.conditions.supports_guidance:
            raise refused(
                path, "diffusion.label_dropout", 0.0, "must be positive for diffusers, which has a null class"
            )
        dit_config.check_options(model, diffusers=True)
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
            guidance_scale=diffusion.conditions.guidance_scale is not None,
        )
        unet_config.check_writable(path, model, written, side=side)
        order = inpainting_order(channels) if inpaints else None
        names = unet_config.table(model, conditional=bool(context), linear=linear, input_order=order)
        folder = out / "unet"
    params = {name: leaf for name, leaf in run.variables["params"]["model"].items() if name not in _TRAINING_ONLY}
    _write_component(folder, written, {"params/model": Block("", names)}, {"params": {"model": params}})
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
    _save_component(out, config, _tensors(names, variables))


def _tensors(names: Table, variables: Mapping[str, Any]) -> dict[str, LazyTensor]:
    return table.tensors_of(names, {path: np.asarray(leaf) for path, leaf in flatten(variables).items()})


def _save_component(out: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> None:
    _write_json(out / "config.json", config)
    safetensors_file.save(out / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})


def _write_index(out: Path, pipeline: str, **classes: str) -> None:
    index = {name: ["diffusers", class_name] for name, class_name in classes.items()}
    _write_json(out / "model_index.json", {"_class_name": pipeline, **index})


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_text(path, json.dumps({**fields, "_diffusers_version": _VERSION}, indent=2, sort_keys=True) + "\n")
