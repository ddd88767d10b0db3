"""Folders of diffusers and transformers as runs: whole pipelines, and components."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffjax.conversion import (
    autoencoder_config,
    clip,
    dit_config,
    prior_config,
    scheduler_config,
    tiny_config,
    unclip_config,
    unet_config,
)
from diffjax.conversion.components import ImportedRun, Json, read_component, read_json
from diffjax.errors import UserError, unknown
from diffjax.published.folders import open_component, refused
from diffjax.published.table import Block, Order, Table
from diffjax.runs.config_files import load_file


def read_folder(folder: Path) -> ImportedRun:
    """Returns the run of a folder of diffusers: a pipeline (model_index.json) or a component (config.json).

    Raises:
      UserError: the folder is neither, or has a component or an option that is not supported.
    """
    if (folder / "model_index.json").exists():
        index = read_json(folder / "model_index.json")
        name = index.get("_class_name")
        if name not in PIPELINES:
            raise unknown(f"pipeline of {folder}/model_index.json, _class_name", str(name), PIPELINES)
        return PIPELINES[name](folder, index)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder} has neither model_index.json nor config.json; use the folder of a pipeline or a model"
        )
    config = read_json(folder / "config.json")
    if "model_type" in config:
        return clip.read_clip(folder)
    name = config.get("_class_name")
    if name in autoencoder_config.CLASSES:
        return read_autoencoder(folder, config)
    if name == "AutoencoderTiny":
        return _read_tiny(folder, config)
    if name == "UNet2DModel":
        return _pixels(folder, folder)
    if name == "PriorTransformer":
        return _read_prior(folder)
    raise unknown(
        f"class of {folder}/config.json, _class_name",
        str(name),
        (*autoencoder_config.CLASSES, "AutoencoderTiny", "PriorTransformer", "UNet2DModel"),
    )


def read_autoencoder(folder: Path, config: Json, *, scaling_factor: float | None = None) -> ImportedRun:
    """Returns the run of an AutoencoderKL or VQModel.

    Args:
      scaling_factor: factor of latents; None: that of its config.
    """
    ours = autoencoder_config.read(folder / "config.json", config)
    factor = config.get("scaling_factor", 0.18215) if scaling_factor is None else scaling_factor
    autoencoder_config.check_scaling_factor(folder / "config.json", factor)
    table = autoencoder_config.diffusers_table(ours, factor)
    return ImportedRun(folder, ours, table, open_component(folder))


def _read_tiny(folder: Path, config: Json) -> ImportedRun:
    ours, factor = tiny_config.read(folder / "config.json", config), config.get("scaling_factor", 1.0)
    autoencoder_config.check_scaling_factor(folder / "config.json", factor)
    return ImportedRun(folder, ours, tiny_config.table(ours, factor), open_component(folder))


def _read_pixels(folder: Path, index: Json) -> ImportedRun:
    """Returns the run of a DDPMPipeline or a DDIMPipeline."""
    return _pixels(_component(folder, "unet"), _component(folder, "scheduler"))


def _pixels(folder: Path, scheduler: Path) -> ImportedRun:
    """Returns the run of a diffusion model on pixels: the folders of its UNet2DModel and of its scheduler, if any."""
    path = folder / "config.json"
    unet = read_component(path, "UNet2DModel")
    side = _side(path, unet)
    model = unet_config.read(path, unet, side=side)
    channels = unet.get("in_channels", 3)
    config = _base("configs/published/ddpm.py")
    config.data.update(image_size=side, channels=channels)
    config.model = ConfigDict(model)
    _set_process(config, scheduler, learns_variance=_learns_variance(path, channels, unet.get("out_channels", 3)))
    _set_classes(config, unet.get("num_class_embeds") or 0)
    table: Table = {"params/model": Block("", unet_config.table(config.model, conditional=False))}
    return ImportedRun(folder, config, table, open_component(folder))


def _read_latents(folder: Path, index: Json) -> ImportedRun:
    """Returns the run of an unconditional latent diffusion model: LDMPipeline."""
    path = _component(folder, "unet") / "config.json"
    unet = read_component(path, "UNet2DModel")
    vae = read_component(_component(folder, "vqvae") / "config.json", *autoencoder_config.CLASSES)
    codec = read_autoencoder(_component(folder, "vqvae"), vae, scaling_factor=vae.get("scaling_factor", 1.0))
    config = _base("configs/published/latent_diffusion.py")
    side = _side(path, unet)
    _set_codec(config, codec, side)
    config.model = ConfigDict(unet_config.read(path, unet, side=side))
    _set_process(config, _component(folder, "scheduler"))
    config.sampler.threshold = "none"
    table: Table = {"params/model": Block("", unet_config.table(config.model, conditional=False))}
    return ImportedRun(
        _component(folder, "unet"), config, table, open_component(_component(folder, "unet")), parts={"codec": codec}
    )


def _read_dit(folder: Path, index: Json) -> ImportedRun:
    """Returns the run of a DiTPipeline."""
    path = _component(folder, "transformer") / "config.json"
    transformer = read_component(path, "DiTTransformer2DModel", "Transformer2DModel")
    vae = read_component(_component(folder, "vae") / "config.json", "AutoencoderKL")
    codec = read_autoencoder(_component(folder, "vae"), vae)
    config = _base("configs/published/dit.py")
    _set_codec(config, codec, _side(path, transformer))
    config.model = ConfigDict(dit_config.read(path, transformer))
    config.data.num_classes = transformer.get("num_embeds_ada_norm", 1000)
    channels, outputs = transformer.get("in_channels", 4), transformer.get("out_channels")
    learns_variance = outputs is not None and _learns_variance(path, channels, outputs)
    _set_process(config, _component(folder, "scheduler"), learns_variance=learns_variance)
    config.sampler.threshold = "none"
    table: Table = {"params/model": Block("", dit_config.table(config.model))}
    return ImportedRun(
        _component(folder, "transformer"),
        config,
        table,
        open_component(_component(folder, "transformer")),
        parts={"codec": codec},
    )


def _read_stable_diffusion(folder: Path, index: Json) -> ImportedRun:
    """Returns the run of a StableDiffusionPipeline, for text-to-image or inpainting, or a latent consistency model.

    Its safety checker is not imported.
    """
    path = _component(folder, "unet") / "config.json"
    unet = read_component(path, "UNet2DConditionModel")
    vae = read_component(_component(folder, "vae") / "config.json", "AutoencoderKL")
    side, linear = _side(path, unet), bool(unet.get("use_linear_projection", False))
    codec = read_autoencoder(_component(folder, "vae"), vae)
    text = clip.read_clip(folder / "text_encoder", tokenizer=folder / "tokenizer")
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels not in (latents, 2 * latents + 1):
        raise refused(path, "in_channels", channels, f"must be {latents}, or {2 * latents + 1} for inpainting")
    inpaints, consistency = channels != latents, bool(unet.get("time_cond_proj_dim"))
    variant = "1_inpainting" if inpaints else "1_consistency" if consistency else "1"
    config = _base(f"configs/published/stable_diffusion.py:{variant}")
    _set_codec(config, codec, side)
    config.model = ConfigDict(unet_config.read(path, unet, side=side))
    _set_process(config, _component(folder, "scheduler"))
    config.sampler.threshold = "none"
    names = unet_config.table(
        config.model, conditional=True, linear=linear, input_order=inpainting_order(latents) if inpaints else None
    )
    return ImportedRun(
        _component(folder, "unet"),
        config,
        {"params/model": Block("", names)},
        open_component(_component(folder, "unet")),
        tokenizer=text.tokenizer,
        parts={"codec": codec, "clip": text},
    )


def _read_unclip(folder: Path, index: Json) -> ImportedRun:
    """Returns the run of an UnCLIPPipeline (Karlo)."""
    text = clip.read_clip(folder / "text_encoder", tokenizer=folder / "tokenizer")
    prior, decoder = _read_prior_network(folder, folder / "prior", text), _read_decoder(folder, text)
    low = decoder.config.data.image_size
    upsampler, last = (_read_upsampler(folder, folder / f"super_res_{name}", low) for name in ("first", "last"))
    upsampler.config.last_step = "@last_step"
    upsampler = dataclasses.replace(upsampler, parts={"last_step": last})
    high = upsampler.config.data.image_size
    config = _base("configs/published/karlo.py:pipeline")
    config.data.channels = decoder.config.data.channels
    for each in (config, prior.config, decoder.config):
        each.data.image_size = high
    decoder.config.diffusion.downsample = high // low
    parts = {"clip": text, "prior": prior, "decoder": decoder, "upsampler": upsampler}
    return ImportedRun(folder, config, {}, {}, tokenizer=text.tokenizer, parts=parts)


def _read_decoder(folder: Path, text: ImportedRun) -> ImportedRun:
    """Returns the run of the decoder of an UnCLIPPipeline, for data of the size of its own images."""
    path = folder / "decoder" / "config.json"
    unet = read_component(path, "UNet2DConditionModel")
    side = _side(path, unet)
    model = unet_config.read(path, unet, side=side)
    channels, outputs = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if outputs != 2 * channels:
        raise refused(path, "out_channels", outputs, "must be twice in_channels, for a learned variance")
    if "transformer_depth" in model:
        raise refused(path, "down_block_types", unet.get("down_block_types"), "must be SimpleCrossAttnDownBlock2D")
    config = _base("configs/published/karlo.py:decoder")
    del config["parts"]
    config.data.update(image_size=side, channels=channels)
    config.model = ConfigDict(model)
    proj = folder / "text_proj" / "config.json"
    conditions = unclip_config.read(
        proj,
        read_component(proj, "UnCLIPTextProjModel"),
        dimensions=_dimensions(folder, text),
        channels=config.model.channels,
        context=unet.get("cross_attention_dim", 1280),
    )
    config.conditions.update(conditions)
    _set_unclip_process(config, folder / "decoder_scheduler", learns_variance=True)
    projections = open_component(folder / "text_proj").items()
    tensors = open_component(folder / "decoder") | {unclip_config.PREFIX + name: value for name, value in projections}
    names = unclip_config.table(config.model, tokens=config.conditions.image_embedding.tokens)
    return ImportedRun(folder / "decoder", config, names, tensors, tokenizer=text.tokenizer)


def _read_upsampler(folder: Path, network: Path, low: int) -> ImportedRun:
    """Returns the run of one of the two upsamplers of an UnCLIPPipeline, from images of low x low."""
    path = network / "config.json"
    unet = read_component(path, "UNet2DModel")
    side = _side(path, unet)
    model = unet_config.read(path, unet, side=side)
    inputs, outputs = unet.get("in_channels", 3), unet.get("out_channels", 3)
    if inputs != 2 * outputs:
        raise refused(path, "in_channels", inputs, "must be twice out_channels, for x_t and the enlarged image")
    if side == low or side % low:
        raise refused(path, "sample_size", side, f"must be a multiple of {low}, the sample_size of the decoder")
    config = _base("configs/published/karlo.py:last_step")
    config.data.update(image_size=side, channels=outputs)
    config.model = ConfigDict(model)
    config.conditions.low_res_image.factor = side // low
    steps = config.sampler.steps
    _set_unclip_process(config, folder / "super_res_scheduler")
    config.sampler.steps = steps
    table: Table = {"params/model": Block("", unet_config.table(config.model, conditional=False))}
    return ImportedRun(network, config, table, open_component(network))


def _read_prior(folder: Path) -> ImportedRun:
    """Returns the run of the prior of an UnCLIPPipeline: a folder next to the pipeline's other components."""
    pipeline = folder.resolve().parent
    if not (pipeline / "text_encoder").is_dir():
        raise UserError(
            f"{folder} is a prior of CLIP embeddings; put the folder text_encoder of its pipeline next to it"
        )
    text = clip.read_clip(pipeline / "text_encoder", tokenizer=pipeline / "tokenizer")
    siblings = [pipeline / name for name in ("text_encoder", "tokenizer", "prior_scheduler")]
    return dataclasses.replace(_read_prior_network(pipeline, folder, text), parts={"clip": text}, siblings=siblings)


def _read_prior_network(pipeline: Path, folder: Path, text: ImportedRun) -> ImportedRun:
    """Returns the run of a prior, without the CLIP."""
    path = folder / "config.json"
    config = _base("configs/published/karlo.py:prior")
    del config["parts"]
    config.model = ConfigDict(
        prior_config.read(
            path,
            read_component(path, "PriorTransformer"),
            dimensions=_dimensions(pipeline, text),
            length=text.config.text.length,
        )
    )
    _set_unclip_process(config, pipeline / "prior_scheduler")
    return ImportedRun(folder, config, prior_config.table(), open_component(folder), tokenizer=text.tokenizer)


def _dimensions(pipeline: Path, text: ImportedRun) -> int:
    """Returns the dimension of a CLIP's embeddings and of its text encoder's states, which must be equal for unCLIP."""
    dimensions, width = text.config.model.dimensions, text.config.get("text_encoder", {}).get("width", 0)
    if not dimensions or dimensions != width:
        path = pipeline / "text_encoder" / "config.json"
        raise refused(path, "projection_dim", dimensions, f"must be that of the text encoder's states, {width}")
    return dimensions


def _set_unclip_process(config: ConfigDict, scheduler: Path, *, learns_variance: bool = False) -> None:
    """Sets the process of a stage of an UnCLIPPipeline, whose schedulers are all UnCLIPScheduler."""
    read_component(scheduler / "scheduler_config.json", "UnCLIPScheduler")
    _set_process(config, scheduler, learns_variance=learns_variance)


def inpainting_order(latents: int) -> Order:
    """Returns the input channels of inpainting networks: x_t, mask, masked latents; ours are x_t, latents, mask."""
    return lambda count: np.array([*range(latents), *range(latents + 1, count), latents])


def _set_codec(config: ConfigDict, codec: ImportedRun, side: int) -> None:
    """Sets the images of a latent diffusion model and its part `codec`, for latents of side x side."""
    factor = 2 ** (len(codec.config.model.multipliers) - 1)
    config.data.update(image_size=side * factor, channels=codec.config.data.channels)
    before, codec.config.data.image_size = codec.config.data.image_size, side * factor
    codec.config.model.attention_resolutions = tuple(
        resolution * side * factor // before for resolution in codec.config.model.attention_resolutions
    )


def _component(folder: Path, name: str) -> Path:
    """Returns the folder of a component: a subfolder, or in old repositories the folder of the pipeline."""
    return folder / name if (folder / name).is_dir() else folder


def _set_process(config: ConfigDict, scheduler: Path, *, learns_variance: bool = False) -> None:
    """Sets the sections `diffusion` and `sampler` for the folder of a scheduler; one without a scheduler is DDPM's."""
    path = scheduler / "scheduler_config.json"
    fields = read_json(path) if path.exists() else {"_class_name": "DDPMScheduler"}
    diffusion, sampler = scheduler_config.read(path, fields, learns_variance=learns_variance)
    for line in scheduler_config.differences(path, fields):
        print(line, file=sys.stderr)
    config.diffusion.update(diffusion)
    config.sampler.update(sampler)


def _learns_variance(path: Path, channels: int, outputs: int) -> bool:
    """Returns whether a network outputs a variance too. Raises UserError for other channels of outputs."""
    if outputs not in (channels, 2 * channels):
        raise refused(path, "out_channels", outputs, "must be in_channels, or twice that for a learned variance")
    return outputs != channels


def _set_classes(config: ConfigDict, classes: int) -> None:
    config.data.num_classes = classes
    config.diffusion.update(class_conditional=bool(classes), label_dropout=0.0)


def _side(path: Path, unet: Json) -> int:
    side = unet.get("sample_size")
    if isinstance(side, list | tuple) and len(side) == 2 and side[0] == side[1]:
        side = side[0]
    if type(side) is not int or not 0 < side < 2**16:
        raise refused(path, "sample_size", side, "must be the height and width of x_t; add it to the file")
    return side


def _base(path: str) -> ConfigDict:
    """Returns the config that an import starts from, unlocked."""
    config = ConfigDict(load_file(path).to_dict())
    config.data.name = "folder"  # also of a variant on another data set
    return config


PIPELINES: dict[str, Callable[[Path, Json], ImportedRun]] = {
    "DDPMPipeline": _read_pixels,
    "DDIMPipeline": _read_pixels,
    "LDMPipeline": _read_latents,
    "DiTPipeline": _read_dit,
    "StableDiffusionPipeline": _read_stable_diffusion,
    "StableDiffusionImg2ImgPipeline": _read_stable_diffusion,
    "StableDiffusionInpaintPipeline": _read_stable_diffusion,
    "LatentConsistencyModelPipeline": _read_stable_diffusion,
    "UnCLIPPipeline": _read_unclip,
}
