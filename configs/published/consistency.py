"""Consistency models (Song et al. 2023) of ImageNet 64x64, LSUN bedrooms and cats, and their EDM teachers.

    python launch.py import --source=cd_imagenet64_lpips.pt --config=configs/published/consistency.py:imagenet64 \
                            --workdir=runs/cd_imagenet64
    python launch.py sample --workdir=runs/cd_imagenet64 --num=64 --out=samples.png

Files of github.com/openai/consistency_models, by variant:
  imagenet64      cd_imagenet64_l2.pt, cd_imagenet64_lpips.pt, ct_imagenet64.pt
  lsun            cd_bedroom256_l2.pt, cd_bedroom256_lpips.pt, ct_bedroom256.pt, and the same of cat256
  edm_imagenet64  edm_imagenet64_ema.pt
  edm_lsun        edm_bedroom256_ema.pt, edm_cat256_ema.pt

The consistency models sample in one step; --grid='times(1000,436.46)' is their two steps (times 0 and 22 of 39).
Training with this file is denoising, not distillation: it trains the teachers, and fine-tunes the others on images.

Time: not trained by us; the distillation of cd_imagenet64 took 600,000 steps of 2048 images.
Score: the paper's FID: 6.20 in one step and 4.70 in two on ImageNet 64x64 (cd_imagenet64_lpips), 7.80 and 5.22 on LSUN
bedrooms; the teachers' 2.44 and 3.57 (EDM sampler).
Setting: flags of the repository's scripts/launch.sh for the teachers, with batches of 4096 on ImageNet and 256 on LSUN;
it has no number of steps for them, so that is ours.
"""

from ml_collections import ConfigDict

from configs import common

_LSUN = {
    "data": {"image_size": 256, "num_classes": 0},
    "model": {"channels": 256, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "time_conditioning": "add"},
    "train": {"batch_size": 256},
}
_EDM = {
    "diffusion": {"parameterization": "edm(time_scale=1000)", "weighting": "simple"},
    "sampler": {"name": "heun", "steps": 40, "grid": "karras"},
}
VARIANTS = {
    "imagenet64": {},
    "lsun": {**_LSUN, "diffusion": {"class_conditional": False}},
    "edm_imagenet64": {**_EDM, "model": {"dropout": 0.1}},
    "edm_lsun": {
        **_LSUN,
        **_EDM,
        "model": {**_LSUN["model"], "dropout": 0.1},
        "diffusion": {**_EDM["diffusion"], "class_conditional": False},
    },
}


def get_config(variant: str = "imagenet64") -> ConfigDict:
    config = common.new("ddpm", "unet", "diffusion", "labels", "diffusion_sampler", "published")
    common.add(config, "model.resample", "model.norm_epsilon", "model.time_embedding", "model.downsample_padding")
    common.add(config, "model.initializer", "model.head_channels")
    config.data.update(name="folder", image_size=64, channels=3, num_classes=1000)
    config.model.update(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention_resolutions=(32, 16, 8))
    config.model.update(head_channels=64, resample="residual", initializer="torch")
    config.model.update(norm_epsilon=1e-5, norm_min_channels=0, time_embedding="adm", downsample_padding="symmetric")
    config.diffusion.update(schedule="edm", continuous=True, parameterization="consistency(time_scale=1000)")
    config.diffusion.update(weighting="edm", time_sampling="log_normal(mean=-1.2,std=1.2)", label_dropout=0.0)
    config.train.update(steps=600_000, batch_size=4096, learning_rate=1e-4, learning_rate_schedule="constant")
    config.train.update(warmup_steps=0, clip_norm=0.0, beta2=0.999, ema_decay=0.9999432189950708)
    config.train.update(sample_every=10_000, num_preview_samples=16, checkpoint_every=10_000)
    config.sampler.update(name="consistency", steps=1, grid="trailing", threshold="clip")
    config.published.update(naming="openai", attention_order="contiguous", attention_layers="conv2d")
    return common.vary(config, variant, VARIANTS)
