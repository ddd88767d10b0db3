"""Stable Diffusion 1 and 2: latent diffusion conditioned on the states of a frozen CLIP text encoder.

    python launch.py import --source=v1-5-pruned-emaonly.safetensors \
                            --config=configs/published/stable_diffusion.py:1 --workdir=runs/sd15
    python launch.py sample --workdir=runs/sd15 --prompt="a red fox in the snow" --num=4 --out=samples.png

`1`: sd-v1-1.ckpt to sd-v1-4.ckpt, v1-5-pruned(-emaonly); `1_inpainting`: sd-v1-5-inpainting; `1_consistency`: a latent
consistency model of version 1, such as LCM_Dreamshaper_v7, for samples in 1 to 8 steps; `2`: v2-1_768-ema-pruned and
768-v-ema; `2_base`: v2-1_512-ema-pruned and 512-base-ema; `2_inpainting`: 512-inpainting-ema. Folders of diffusers need
no --config.

Time: not trained by us.
Score: not measured.
Setting: the model card of version 1: 860M parameters at 512x512, LAION-2B and its aesthetic subset, batches of 2048,
AdamW, learning rate 1e-4 after 10,000 steps of warm-up, 10 % of the captions dropped from sd-v1-3 on.
"""

from ml_collections import ConfigDict

from configs import common
from configs.published import autoencoder_kl, clip

VARIANTS = {
    "1": {},
    "1_inpainting": {},
    "1_consistency": {"sampler": {"name": "lcm", "steps": 4, "grid": "trailing(among=50)"}},
    "2": {"data": {"image_size": 768}, "diffusion": {"parameterization": "v"}},
    "2_base": {},
    "2_inpainting": {},
}


def get_config(variant: str = "1") -> ConfigDict:
    second = variant.startswith("2")
    config = common.new("latent", "codec", "clip", "unet", "diffusion", "diffusion_sampler", "published")
    common.add(config, "model.transformer_depth", "model.head_channels" if second else "model.heads")
    common.add(config, "model.norm_epsilon", "model.time_embedding", "model.downsample_padding", "model.initializer")
    common.add(config, "conditions.clip_text")
    config.data.update(name="folder", image_size=512, channels=3, num_classes=0)
    config.model.update(channels=320, multipliers=(1, 2, 4, 4), blocks=2, time_conditioning="add")
    config.model.update(norm_epsilon=1e-5, norm_min_channels=0, time_embedding="adm", downsample_padding="symmetric")
    config.model.initializer = "torch"
    config.conditions.clip_text.update(dropout=0.1, null="empty")
    config.diffusion.update(schedule="scaled_linear", parameterization="eps", variance="fixed_small")
    config.train.update(steps=500_000, batch_size=2048, learning_rate=1e-4, learning_rate_schedule="constant")
    config.train.update(warmup_steps=10_000, weight_decay=0.01, beta2=0.999, ema_decay=0.9999)
    config.train.update(sample_every=10_000, num_preview_samples=16, checkpoint_every=5000)
    config.sampler.update(name="ddim", steps=50, grid="leading(offset=1)", threshold="none", guidance=7.5)
    config.published.update(naming="compvis", scaling_factor=0.18215)
    codec = autoencoder_kl.get_config("stable_diffusion")
    if second:
        config.model.head_channels = 64
    else:
        config.model.heads = 8
    if variant.endswith("inpainting"):
        common.add(config, "conditions.masked_image", "sampler.keep_known")
        config.conditions.masked_image.resize = "nearest"
        config.sampler.keep_known = False  # the network sees the known region
    if variant.endswith("consistency"):  # Luo et al. 2023: scales of guidance that are distilled in
        common.add(config, "conditions.guidance_scale")
        config.conditions.guidance_scale.update(low=1.0, high=14.0)
    config = common.vary(config, variant, VARIANTS)
    codec.data.image_size = config.data.image_size
    common.add_parts(config, codec=codec, clip=clip.get_config("sd2_text" if second else "sd1_text"))
    latents = config.data.image_size // 8
    config.model.attention_resolutions = (latents, latents // 2, latents // 4)
    return config
