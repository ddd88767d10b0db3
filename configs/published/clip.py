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

from ml_collections import ConfigDict

from configs import common

_PIXELS = {
    "pixel_mean": (0.48145466, 0.4578275, 0.40821073),
    "pixel_std": (0.26862954, 0.26130258, 0.27577711),
}
VARIANTS = {  # image size, dimensions; image encoder: layers, width, heads, patch (0: ResNet); text: layers, width
    "vit_b32": (224, 512, 12, 768, 12, 32, 12, 512),
    "vit_b16": (224, 512, 12, 768, 12, 16, 12, 512),
    "vit_l14": (224, 768, 24, 1024, 16, 14, 12, 768),
    "vit_l14_336": (336, 768, 24, 1024, 16, 14, 12, 768),
    "rn50": (224, 1024, (3, 4, 6, 3), 64, 32, 0, 12, 512),
    "rn101": (224, 512, (3, 4, 23, 3), 64, 32, 0, 12, 512),
    "rn50x4": (288, 640, (4, 6, 10, 6), 80, 40, 0, 12, 640),
    "rn50x16": (384, 768, (6, 8, 18, 8), 96, 48, 0, 12, 768),
    "rn50x64": (448, 1024, (3, 15, 36, 10), 128, 64, 0, 12, 1024),
    "laion_vit_b32": (224, 512, 12, 768, 12, 32, 12, 512),
    "laion_vit_b16": (224, 512, 12, 768, 12, 16, 12, 512),
    "laion_vit_l14": (224, 768, 24, 1024, 16, 14, 12, 768),
    "laion_vit_h14": (224, 1024, 32, 1280, 16, 14, 24, 1024),
    "laion_vit_g14": (224, 1024, 40, 1408, 16, 14, 24, 1024),
    "laion_vit_bigg14": (224, 1280, 48, 1664, 16, 14, 32, 1280),
    "glide_noised": (64, 512, 12, 768, 12, 4, 12, 512),
    "sd1_text": (224, 0, 0, 0, 0, 0, 12, 768),
    "sd2_text": (224, 0, 0, 0, 0, 0, 23, 1024),
}
_RATIOS = {"laion_vit_g14": 6144 / 1408, "laion_vit_bigg14": 8192 / 1664}


def get_config(variant: str = "vit_b32") -> ConfigDict:
    size, dimensions, layers, width, heads, patch, text_layers, text_width = common.choose(variant, VARIANTS)
    config = common.new("clip", "text", "model.dimensions", "model.resize_images", "text_encoder", "published.naming")
    common.add(config, "text_encoder.mlp_ratio", "text_encoder.activation", "text_encoder.padding")
    config.data.update(name="folder", image_size=size, channels=3, num_classes=0)
    config.text.update(vocabulary=65_536 if variant == "glide_noised" else 49_408, length=77)
    config.model.update(dimensions=dimensions, resize_images=variant != "glide_noised")
    config.text_encoder.update(width=text_width, layers=text_layers, heads=text_width // 64)
    config.text_encoder.update(padding=49_407 if variant == "sd1_text" else 0)
    config.published.naming = {"sd1_text": "transformers", "glide_noised": "glide_clip"}.get(variant, "openai")
    if layers:
        vit = ("image_encoder.activation", "image_encoder.mlp_ratio") * bool(patch)
        common.add(config, "image_encoder", "image_encoder.pixel_mean", "image_encoder.pixel_std", *vit)
        with config.unlocked(), config.ignore_type():  # a ResNet has a tuple of layers
            config.image_encoder.update(_PIXELS, layers=layers, width=width, heads=heads, patch=patch)
            if patch:
                config.image_encoder.mlp_ratio = _RATIOS.get(variant, 4.0)
            else:
                config.image_encoder.architecture = "resnet"
                del config.image_encoder["patch"]
    if variant.startswith("laion") or variant in ("sd2_text", "glide_noised"):
        for encoder in ("text_encoder", "image_encoder")[: 1 + bool(layers)]:
            config[encoder].activation = "gelu"
    if variant == "glide_noised":
        common.add(config, "noising", "diffusion.downsample")
    config.train.update(steps=400_000, batch_size=32_768, learning_rate=5e-4, warmup_steps=2000, weight_decay=0.2)
    config.train.update(beta2=0.98, sample_every=0, num_preview_samples=0, checkpoint_every=5000)
    return config
