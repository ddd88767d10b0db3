"""CLIP (Radford et al. 2021), as published by OpenAI, and by LAION with open_clip.

    python launch.py import --source=ViT-B-32.pt --config=configs/published/clip.py:vit_b32 --workdir=runs/clip_b32

OpenAI's ViT-B-32.pt, ViT-B-16.pt, ViT-L-14.pt, ViT-L-14-336px.pt, RN50.pt, RN101.pt, RN50x4.pt, RN50x16.pt, RN50x64.pt;
`:laion_*`: open_clip_model.safetensors (or open_clip_pytorch_model.bin) of laion/CLIP-ViT-*-laion2B-*. `:sd1_text` and
`:sd2_text` are the text encoders of Stable Diffusion, in its files. `:glide_noised`: the folder of
clip_image_enc.pt and clip_text_enc.pt, GLIDE's CLIP of noised images. Folders of transformers need no --config.

The vocabulary is in none of these files: pass --config.text.tokenizer=bpe_simple_vocab_16e6.txt.gz of OpenAI's code.

Time: ViT-L/14: 12 days on 256 V100 GPUs, RN50x64: 18 days on 592 (Radford et al. 2021); not trained by us.
Score: the paper's: zero-shot top-1 on ImageNet 63.2 % (ViT-B/32), 76.2 % (ViT-L/14 at 336 pixels), 59.6 % (RN50).
Setting: Radford et al. 2021, section 2.5: batch 32,768, 32 epochs of 400M pairs, AdamW with weight decay 0.2.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common

PIXELS = {  # of OpenAI and LAION
    "pixel_mean": (0.48145466, 0.4578275, 0.40821073),
    "pixel_std": (0.26862954, 0.26130258, 0.27577711),
}
SMALL, LARGE = {"width": 512, "heads": 8}, {"width": 768, "heads": 12}  # text encoders


def _vit(
    patch: int, width: int, layers: int, dimensions: int, text: Mapping[str, Any], *, size: int = 224, **image: Any
) -> dict[str, dict[str, Any]]:
    """Returns the fields of a CLIP with a vision transformer; heads have 64 channels unless `image` has `heads`."""
    return {
        "data": {"image_size": size},
        "model": {"dimensions": dimensions},
        "image_encoder": {"patch": patch, "width": width, "layers": layers, "heads": width // 64, **image},
        "text_encoder": dict(text),
    }


def _resnet(
    layers: tuple[int, ...], width: int, dimensions: int, text: Mapping[str, Any], *, size: int = 224
) -> dict[str, dict[str, Any]]:
    """Returns the fields of a CLIP with a ResNet, whose attention pool has heads of 64 channels."""
    return {
        "data": {"image_size": size},
        "model": {"dimensions": dimensions},
        "image_encoder": {"layers": layers, "width": width, "heads": width // 2},
        "text_encoder": dict(text),
    }


def _gelu(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns fields with the activation of LAION's CLIPs."""
    encoders = ("image_encoder", "text_encoder")
    return {
        name: {**section, **({"activation": "gelu"} if name in encoders else {})} for name, section in fields.items()
    }


VARIANTS = {
    "vit_b32": _vit(32, 768, 12, 512, SMALL),
    "vit_b16": _vit(16, 768, 12, 512, SMALL),
    "vit_l14": _vit(14, 1024, 24, 768, LARGE),
    "vit_l14_336": _vit(14, 1024, 24, 768, LARGE, size=336),
    "rn50": _resnet((3, 4, 6, 3), 64, 1024, SMALL),
    "rn101": _resnet((3, 4, 23, 3), 64, 512, SMALL),
    "rn50x4": _resnet((4, 6, 10, 6), 80, 640, {"width": 640, "heads": 10}, size=288),
    "rn50x16": _resnet((6, 8, 18, 8), 96, 768, LARGE, size=384),
    "rn50x64": _resnet((3, 15, 36, 10), 128, 1024, {"width": 1024, "heads": 16}, size=448),
    "laion_vit_b32": _gelu(_vit(32, 768, 12, 512, SMALL)),
    "laion_vit_b16": _gelu(_vit(16, 768, 12, 512, SMALL)),
    "laion_vit_l14": _gelu(_vit(14, 1024, 24, 768, LARGE)),
    "laion_vit_h14": _gelu(_vit(14, 1280, 32, 1024, {"width": 1024, "heads": 16, "layers": 24}, heads=16)),
    "laion_vit_g14": _gelu(
        _vit(14, 1408, 40, 1024, {"width": 1024, "heads": 16, "layers": 24}, heads=16, mlp_ratio=6144 / 1408)
    ),
    "laion_vit_bigg14": _gelu(
        _vit(14, 1664, 48, 1280, {"width": 1280, "heads": 20, "layers": 32}, heads=16, mlp_ratio=8192 / 1664)
    ),
    "glide_noised": {
        **_gelu(_vit(4, 768, 12, 512, SMALL, size=64)),
        "text": {"vocabulary": 65_536},  # of which the tokenizer has 49,408
        "published": {"naming": "glide_clip"},
        "diffusion": {"schedule": "cosine", "timesteps": 1000},
    },
    "sd1_text": {"model": {"dimensions": 0}, "text_encoder": {**LARGE, "padding": 49_407}},
    "sd2_text": {
        "model": {"dimensions": 0},
        "text_encoder": {"width": 1024, "heads": 16, "layers": 23, "activation": "gelu"},
    },
}


def get_config(variant: str = "vit_b32") -> ConfigDict:
    config = common.new("clip", "text", "model.dimensions", "image_encoder", "text_encoder", "published.naming")
    common.add(config, "text_encoder.mlp_ratio", "text_encoder.activation", "text_encoder.padding")
    common.add(config, "model.resize_images")
    config.data.update(name="folder", image_size=224, channels=3, num_classes=0)
    config.text.update(vocabulary=49_408, length=77)
    config.model.resize_images = True
    config.image_encoder.update(layers=12)
    config.text_encoder.update(layers=12)
    common.add(config, "image_encoder.pixel_mean", "image_encoder.pixel_std")
    config.image_encoder.update(PIXELS)
    if variant.startswith("rn"):
        common.remove(config, "image_encoder.patch", "image_encoder.layers")
        with config.unlocked():
            config.image_encoder.update(architecture="resnet", layers=())
    elif variant.endswith("_text"):
        common.remove(config, "image_encoder")
    else:
        common.add(config, "image_encoder.activation", "image_encoder.mlp_ratio")
    if variant == "glide_noised":
        common.add(config, "noising", "diffusion.downsample")
        config.model.resize_images = False
    config.published.naming = "transformers" if variant == "sd1_text" else "openai"
    with config.ignore_type():  # a ResNet has a tuple of layers
        common.vary(config, variant, VARIANTS)
    config.train.update(steps=400_000, batch_size=32_768, learning_rate=5e-4, warmup_steps=2000, weight_decay=0.2)
    config.train.update(beta2=0.98, sample_every=0, num_preview_samples=0, checkpoint_every=5000)
    return config
