"""DDPM as published on CIFAR-10, CelebA-HQ and LSUN, and other diffusion models on pixels of diffusers' folders.

    python launch.py import --source=hub:google/ddpm-cifar10-32 --workdir=runs/ddpm_cifar10
    python launch.py train --config=configs/published/ddpm.py:256 --config.data.dir=DIR --workdir=runs/ddpm

Folders of diffusers (google/ddpm-cifar10-32, ddpm-celebahq-256, ddpm-church-256, ddpm-bedroom-256, ddpm-cat-256) need
no --config. Variants train them from scratch: `cifar10`, and `256` for the others.

Time: 800,000 steps of 128 images (cifar10); not trained by us.
Score: the paper's: FID 3.17 on CIFAR-10, 4.90 on LSUN bedrooms and 7.89 on churches (Ho et al. 2020).
Setting: Ho et al. 2020, appendix B.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "cifar10": {},
    "256": {
        "data": {"image_size": 256},
        "model": {"multipliers": (1, 1, 2, 2, 4, 4), "dropout": 0.0},
        "train": {"steps": 500_000, "batch_size": 64, "learning_rate": 2e-5},
    },
}


def get_config(variant: str = "cifar10") -> ConfigDict:
    config = common.new("ddpm", "unet", "model.heads", "diffusion", "labels", "diffusion_sampler", "published")
    config.data.update(name="folder", image_size=32, channels=3, num_classes=0, flip=True)
    config.model.update(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention_resolutions=(16,))
    config.model.update(dropout=0.1, time_conditioning="add", norm_min_channels=0)
    config.diffusion.update(schedule="linear", parameterization="eps", variance="fixed_large")
    config.diffusion.update(class_conditional=False, label_dropout=0.0)
    config.train.update(steps=800_000, batch_size=128, learning_rate=2e-4, learning_rate_schedule="constant")
    config.train.update(warmup_steps=5000, beta2=0.999, ema_decay=0.9999)
    config.train.update(sample_every=10_000, num_preview_samples=16, checkpoint_every=5000)
    config.sampler.update(name="ancestral", steps=1000, grid="leading")
    config.published.naming = "diffusers"
    return common.vary(config, variant, VARIANTS)
