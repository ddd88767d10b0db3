"""Cases of the comparison with PyTorch: what is computed, at which size, and the peer's network.

A case is a config of this repository with changed fields, and a workload. Its peer is the class of diffusers or
transformers that `launch.py export` would write, so that both sides have the same architecture.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from diffjax.conversion import autoencoder_config, dit_config, unet_config
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.published import clip_config
from diffjax.runs.config_files import load_file
from diffjax.runs.datasets import image_spec
from diffjax.runs.loading import build_model

SCALES = ("full", "toy")
Fields = Mapping[str, Any]  # config fields by path

_DENOISING = MappingProxyType({"diffusion.loss": "mse", "diffusion.variance": "fixed_small"})
_DIT = MappingProxyType(
    {**_DENOISING, "system": "ddpm", "codec": "", "data.image_size": 32, "data.channels": 4, "train.batch_size": 32}
)
_TOY_UNET = MappingProxyType(
    {"model.channels": 32, "model.multipliers": (1, 2), "model.blocks": 1, "model.attention_resolutions": (8,)}
)
_TOY_DIT = MappingProxyType(
    {"data.image_size": 8, "model.width": 64, "model.layers": 2, "model.heads": 4, "train.batch_size": 4}
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A case at full size, and what a toy size changes.

    Attributes:
      workload: what is timed: "train" | "train_clip" | "reconstruct" | "predict" | "sample" | "decode".
      config: packaged config.
      full: changed fields.
      toy: fields that the scale "toy" changes as well.
      per: what the reported seconds are of.
      tolerance: largest difference of the numbers of parameters, relative to ours.
    """

    workload: str
    config: str
    full: Fields
    toy: Fields
    per: str = "step"
    tolerance: float = 0.0


CASES: dict[str, Case] = {
    "ddpm_cifar10": Case(
        "train", "ddpm_cifar10", _DENOISING, {**_TOY_UNET, "data.image_size": 16, "train.batch_size": 4}
    ),
    "adm64": Case(
        "train",
        "published/adm:64",
        {**_DENOISING, "model.channels": 128, "model.blocks": 2, "train.batch_size": 32},
        {**_TOY_UNET, "model.head_channels": 16, "data.image_size": 16, "train.batch_size": 4},
    ),
    "dit_s2": Case("train", "published/dit:s2_256", _DIT, _TOY_DIT),
    "dit_b2": Case("train", "published/dit:b2_256", _DIT, _TOY_DIT),
    "kl_f8": Case(
        "reconstruct",
        "published/autoencoder_kl:f8",
        {"train.batch_size": 4},
        {
            **{"model.channels": 32, "model.multipliers": (1, 2), "model.blocks": 1},
            **{"data.image_size": 32, "train.batch_size": 2},
        },
        per="encoding and decoding",
    ),
    "clip_vit_b32": Case(
        "train_clip",
        "published/clip:vit_b32",
        {"train.batch_size": 64},
        {
            **{"data.image_size": 32, "text.vocabulary": 512, "text.length": 16, "model.dimensions": 32},
            **{"image_encoder.width": 64, "image_encoder.layers": 2, "image_encoder.heads": 2},
            **{"image_encoder.patch": 16, "text_encoder.width": 64, "text_encoder.layers": 2},
            **{"text_encoder.heads": 2, "train.batch_size": 4},
        },
    ),
    "dalle_sampling": Case(
        "decode",
        "dalle_shapes",
        {
            **{"model.width": 512, "model.layers": 12, "model.heads": 8, "text.vocabulary": 16384, "text.length": 64},
            **{
                "parts.codec.codebook.size": 8192,
                "data.image_size": 64,
                "train.batch_size": 8,
                "sampler.guidance": 1.0,
            },
        },
        {
            **{"model.width": 64, "model.layers": 2, "model.heads": 4, "text.length": 8, "sampler.guidance": 1.0},
            **{"text.vocabulary": 512, "parts.codec.codebook.size": 64, "data.image_size": 32, "train.batch_size": 2},
        },
        per="token",
        tolerance=0.02,  # position embeddings, biases of the heads and ids of padding
    ),
    "ddim_50": Case(
        "sample",
        "ddpm_cifar10",
        {
            **_DENOISING,
            **{"diffusion.class_conditional": True, "diffusion.label_dropout": 0.1, "train.batch_size": 16},
            **{"sampler.name": "ddim", "sampler.steps": 50, "sampler.grid": "leading", "sampler.guidance": 2.0},
        },
        {**_TOY_UNET, "data.image_size": 16, "train.batch_size": 2},
        per="50 steps",
    ),
    "sd15": Case(
        "predict",
        "published/stable_diffusion:1",
        {"train.batch_size": 2},
        {
            **{"model.channels": 32, "model.multipliers": (1, 2), "model.blocks": 1, "model.heads": 2},
            **{"model.attention_resolutions": (8, 4), "data.image_size": 64, "parts.codec.data.image_size": 64},
        },
        per="forward pass",
    ),
}


def make_config(name: str, scale: str, dtype: str, batch_size: int = 0) -> ConfigDict:
    """Returns the config of a case.

    Args:
      name: of CASES.
      scale: "full" | "toy".
      dtype: "float32" | "bfloat16".
      batch_size: examples; 0: the case's.
    """
    case = CASES[name]
    config = ConfigDict(load_file(case.config).to_dict())
    if case.workload == "train" and "parts" in config:  # a DiT on images of the shape of latents
        del config["parts"]
    if "adversarial" in config:
        del config["adversarial"], config.train["discriminator"]
    with config.ignore_type():
        for path, value in {**case.full, **(case.toy if scale == "toy" else {})}.items():
            section, _, field = path.rpartition(".")
            node = config
            for part in section.split(".") if section else ():
                node = node[part]
            node[field] = value
    config.dtype = dtype
    config.parallel.num_devices = 1
    if batch_size:
        config.train.batch_size = batch_size
    return config.lock()


def peer_of(name: str, config: ConfigDict) -> dict[str, Any]:
    """Returns what a peer's workload is built from, as strict JSON.

    Args:
      name: of CASES.
      config: of `make_config`.

    Returns:
      "workload", "batch_size", "dtype", the fields of the network's class, and what else the workload reads.
    """
    case = CASES[name]
    fields = {"workload": case.workload, "batch_size": config.train.batch_size, "dtype": config.dtype}
    if case.workload.startswith("train"):
        names = ("learning_rate", "beta1", "beta2", "weight_decay", "clip_norm", "ema_decay")
        fields["optimizer"] = {name: config.train[name] for name in names}
    if case.workload in ("train", "sample", "predict"):
        return fields | _denoiser(config)
    if case.workload == "reconstruct":
        return fields | {"network": autoencoder_config.write(config), "shape": _shape(config)}
    if case.workload == "train_clip":
        pixels = {name: config.image_encoder[name] for name in ("pixel_mean", "pixel_std")}
        text = {"vocabulary": config.text.vocabulary, "length": config.text.length}
        return fields | {"network": clip_config.write(config.to_dict()), "shape": _shape(config), **pixels, **text}
    model, side = config.model, token_grid(config)
    return fields | {
        "width": model.width,
        "layers": model.layers,
        "heads": model.heads,
        "text_vocabulary": config.text.vocabulary,
        "text_length": config.text.length,
        "tokens": side**2,
        "vocabulary": config.parts.codec.codebook.size,
    }


def token_grid(config: ConfigDict) -> int:
    """Returns the height and width of the grid of image tokens of a "decode" case."""
    return config.data.image_size // config.parts.codec.model.factor


def _shape(config: ConfigDict) -> tuple[int, ...]:
    spec = image_spec(config)
    return spec.size, spec.size, spec.channels


def _denoiser(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of diffusers' class of a denoiser, and of its process and conditions."""
    model = build_model(config, abstract=True)
    assert isinstance(model, DiffusionModel)
    side, _, channels = model.data_space.shape
    rows, section = model.conditions.num_label_embeddings, config.model.to_dict()
    context = config.parts.clip.text_encoder.width if "clip" in config.get("parts", {}) else 0
    if section.get("architecture", "unet") == "dit":
        network = dit_config.write(section, side=side, in_channels=channels, classes=rows - 1)
    else:
        network = unet_config.write(
            section, side=side, in_channels=channels, out_channels=channels, num_label_embeddings=rows, context=context
        )
    return {
        "network": network,
        "shape": model.data_space.shape,
        "labels": rows,
        "timesteps": config.diffusion.timesteps,
        "context": (config.parts.clip.text.length, context) if context else None,
        "steps": config.sampler.steps,
        "guidance": config.sampler.guidance,
    }
