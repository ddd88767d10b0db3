"""Improved DDPM (Nichol & Dhariwal 2021): diffusion models of CIFAR-10, ImageNet 64x64 and LSUN bedrooms.

    python launch.py import --source=cifar10_uncond_50M_500K.pt --config=configs/published/improved_ddpm.py:cifar10 \
                            --workdir=runs/improved_ddpm_cifar10

Files of github.com/openai/improved-diffusion, by variant:
  cifar10           cifar10_uncond_50M_500K.pt
  cifar10_vlb       cifar10_uncond_vlb_50M_500K.pt
  imagenet64        imagenet64_uncond_100M_1500K.pt
  imagenet64_vlb    imagenet64_uncond_vlb_100M_1500K.pt
  imagenet64_class  imagenet64_cond_270M_250K.pt
  lsun              lsun_uncond_100M_1200K_bs128.pt, lsun_uncond_100M_2400K_bs64.pt
  upsampler         upsample_cond_500K.pt

Time: 250,000 to 2,400,000 steps (in the names of the files) of 128 to 2048 images; not trained by us.
Score: the paper's: FID 3.19 and 3.17 bits/dim on CIFAR-10 with the hybrid loss, 2.94 bits/dim with the bound; FID 19.2
and 3.57 bits/dim, and 3.53 bits/dim with the bound, on ImageNet 64x64.
Setting: flags of the repository's README.
"""

from ml_collections import ConfigDict

from configs import common

_CIFAR10 = {
    "data": {"image_size": 32, "flip": True},
    "model": {"multipliers": (1, 2, 2, 2), "dropout": 0.3},
    "train": {"steps": 500_000},
}
_256 = {"multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2}
_VLB = {"loss": "vlb", "time_sampling": "importance"}
VARIANTS = {
    "cifar10": _CIFAR10,
    "cifar10_vlb": {**_CIFAR10, "diffusion": _VLB},
    "imagenet64": {},
    "imagenet64_vlb": {"diffusion": _VLB},
    "imagenet64_class": {
        "data": {"num_classes": 1000},
        "model": {"channels": 192},
        "diffusion": {"class_conditional": True, "rescale_timesteps": False},
        "train": {"steps": 250_000, "batch_size": 2048, "learning_rate": 3e-4},
    },
    "lsun": {
        "data": {"image_size": 256},
        "model": {**_256, "attention_resolutions": (16,), "heads": 1, "time_conditioning": "add"},
        "diffusion": {"schedule": "linear", "timesteps": 1000, "rescale_timesteps": False},
        "train": {"steps": 1_200_000},
        "sampler": {"steps": 1000},
    },
    "upsampler": {
        "data": {"image_size": 256, "num_classes": 1000},
        "model": {"channels": 192, **_256},
        "diffusion": {"schedule": "linear", "class_conditional": True, "rescale_timesteps": False},
        "conditions": {"low_res_image": {"factor": 4}},
        "train": {"steps": 500_000, "batch_size": 256, "learning_rate": 3e-4},
    },
}


def get_config(variant: str = "imagenet64") -> ConfigDict:
    config = common.new("ddpm", "unet", "model.heads", "diffusion", "labels", "diffusion_sampler", "published")
    common.add(config, "model.norm_epsilon", "model.time_embedding", "model.downsample_padding", "model.initializer")
    config.data.update(name="folder", image_size=64, channels=3, num_classes=0)
    config.model.update(channels=128, multipliers=(1, 2, 3, 4), blocks=3, attention_resolutions=(16, 8), heads=4)
    config.model.update(norm_epsilon=1e-5, norm_min_channels=0, time_embedding="adm", downsample_padding="symmetric")
    config.model.update(initializer="torch")
    config.diffusion.update(schedule="cosine", timesteps=4000, rescale_timesteps=True, parameterization="eps")
    config.diffusion.update(loss="hybrid", variance="learned_range", class_conditional=False, label_dropout=0.0)
    config.train.update(steps=1_500_000, batch_size=128, learning_rate=1e-4, learning_rate_schedule="constant")
    config.train.update(warmup_steps=0, clip_norm=0.0, beta2=0.999, ema_decay=0.9999)
    config.train.update(sample_every=10_000, num_preview_samples=16, checkpoint_every=10_000)
    config.sampler.update(name="ancestral", steps=4000, grid="sections")
    config.published.update(naming="openai", attention_order="by_head")
    if variant == "upsampler":
        common.add(config, "conditions.low_res_image")
        config.conditions.low_res_image.update(degradation="none", level=False)
    return common.vary(config, variant, VARIANTS)
