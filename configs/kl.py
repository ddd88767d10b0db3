"""Latent diffusion's continuous first stage: a weakly regularised Gaussian latent and a patch discriminator.

    python launch.py train --config=configs/kl.py --workdir=runs/kl
    python launch.py train --config=configs/kl.py:fashion_mnist --config.data.dir=DIR --workdir=runs/kl_fashion

Time: 3 min on two cores of an AMD EPYC.
Score: MSE 0.0031 on the 360 test digits (`launch.py evaluate --metrics=reconstruction --num=360`).
Fashion-MNIST: docs/results.
Setting: Rombach et al. 2022, KL-f8: 128 channels, multipliers 1, 2, 4, 4, 2 blocks, 4 latent channels, KL weight 1e-6,
discriminator weight 0.5 from step 50,001; here smaller.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "digits": {},
    "fashion_mnist": {
        "model": {"multipliers": (1, 2, 4)},
        "adversarial": {"start_step": 700, "layers": 2, "channels": 16},
        "train": {"steps": 1500, "batch_size": 64},
    },
    "cifar10": {
        "model": {"channels": 32, "multipliers": (1, 2, 2)},
        "adversarial": {"start_step": 5000, "layers": 2},
        "train": {"steps": 20_000},
    },
    "shapes": {
        "model": {"multipliers": (1, 2, 4)},
        "adversarial": {"start_step": 1500, "layers": 2, "channels": 16},
        "train": {"steps": 2500, "batch_size": 48},
    },
    "emoji": {
        "model": {"channels": 32, "multipliers": (1, 2, 2)},
        "adversarial": {"start_step": 700, "layers": 2},
        "train": {"steps": 4000, "batch_size": 64},
    },
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = common.new("vae", "ldm", "reconstruction", "kl", "adversarial", "train.discriminator")
    common.add(config, "sampler.temperature")
    config.model.update(architecture="ldm", channels=16, multipliers=(1, 2), attention_resolutions=(), norm_groups=8)
    config.model.update(latent_channels=4, z_channels=4)
    config.loss.update(likelihood="l1", beta=1e-6)
    config.adversarial.update(weight=0.5, start_step=200, channels=32, layers=1)
    config.train.update(steps=600, batch_size=128, learning_rate=1e-3, beta1=0.5)
    config.train.discriminator.learning_rate = 5e-4
    return common.vary(config, variant, VARIANTS)
