"""ADM (Dhariwal & Nichol 2021): diffusion models of ImageNet from 64x64 to 512x512, and of LSUN.

    python launch.py import --source=64x64_diffusion.pt --config=configs/published/adm.py:64 --workdir=runs/adm_64

Files of github.com/openai/guided-diffusion, by variant: `64`, `128`, `256`, `512` are 64x64_diffusion.pt and so on;
`256_uncond` is 256x256_diffusion_uncond.pt; `lsun` is lsun_bedroom.pt, lsun_cat.pt and lsun_horse.pt. The upsamplers
are in adm_upsampler.py, the classifiers in adm_classifier.py.

Time: 4,360,000 steps of 256 images at 128x128 (appendix I, table 11); not trained by us.
Score: the paper's FID with classifier guidance: 2.97, 4.59 and 7.72 on ImageNet 128, 256 and 512; without it 2.07 on
ImageNet 64, 1.90 on LSUN bedrooms, 5.57 on cats and 2.57 on horses.
Setting: Dhariwal & Nichol 2021, appendix I, tables 11 and 12; flags of the repository's README.
"""

from ml_collections import ConfigDict

from configs import common

_256 = (1, 1, 2, 2, 4, 4)
VARIANTS = {
    "64": {
        "data": {"image_size": 64},
        "model": {"channels": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "dropout": 0.1},
        "diffusion": {"schedule": "cosine"},
        "train": {"steps": 540_000, "batch_size": 2048, "learning_rate": 3e-4},
        "published": {"attention_order": "contiguous"},
    },
    "128": {
        "data": {"image_size": 128},
        "model": {"multipliers": (1, 1, 2, 3, 4), "heads": 4},
        "train": {"steps": 4_360_000},
    },
    "256": {},
    "256_uncond": {"data": {"num_classes": 0}, "diffusion": {"class_conditional": False}},
    "512": {
        "data": {"image_size": 512},
        "model": {"multipliers": (0.5, 1, 1, 2, 2, 4, 4)},
        "train": {"steps": 1_940_000},
    },
    "lsun": {
        "data": {"num_classes": 0},
        "model": {"dropout": 0.1},
        "diffusion": {"class_conditional": False},
        "train": {"steps": 500_000},
    },
}


def get_config(variant: str = "256") -> ConfigDict:
    fields = common.choose(variant, VARIANTS)
    config = common.new("ddpm", "unet", "diffusion", "labels", "diffusion_sampler", "published")
    common.add(config, "model.resample", "model.norm_epsilon", "model.time_embedding", "model.downsample_padding")
    common.add(
        config, "model.initializer", "model.heads" if "heads" in fields.get("model", {}) else "model.head_channels"
    )
    config.data.update(name="folder", image_size=256, channels=3, num_classes=1000)
    config.model.update(
        channels=256, multipliers=_256, blocks=2, attention_resolutions=(32, 16, 8), resample="residual"
    )
    config.model.update(norm_epsilon=1e-5, norm_min_channels=0, time_embedding="adm", downsample_padding="symmetric")
    config.model.update(initializer="torch")
    if "head_channels" in config.model:
        config.model.head_channels = 64
    config.diffusion.update(schedule="linear", parameterization="eps", loss="hybrid", variance="learned_range")
    config.diffusion.label_dropout = 0.0
    config.train.update(steps=1_980_000, batch_size=256, learning_rate=1e-4, learning_rate_schedule="constant")
    config.train.update(warmup_steps=0, clip_norm=0.0, beta2=0.999, ema_decay=0.9999)
    config.train.update(sample_every=10_000, num_preview_samples=16, checkpoint_every=10_000)
    config.sampler.update(name="ancestral", steps=250, grid="sections")
    config.published.update(naming="openai", attention_order="by_head")
    return common.vary(config, variant, VARIANTS)
