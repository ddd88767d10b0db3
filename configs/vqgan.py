"""VQGAN, latent diffusion's discrete first stage: a codebook and a patch discriminator.

    python launch.py train --config=configs/vqgan.py --workdir=runs/vqgan
    python launch.py train --config=configs/vqgan.py:fashion_mnist --config.data.dir=DIR --workdir=runs/vqgan_fashion

Time: 77 s on two cores of an AMD EPYC.
Score: MSE 0.0058 on the 360 test digits, perplexity 46 of 64 tokens
(`launch.py evaluate --metrics=reconstruction --num=360`). Fashion-MNIST: docs/results.
Setting: Esser et al. 2021; Rombach et al. 2022's VQ-f4 has 128 channels, multipliers 1, 2, 4, 2 blocks, 8192 entries of
3 channels; here smaller, and the discriminator starts early.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "digits": {},
    "fashion_mnist": {
        "model": {"multipliers": (1, 2, 4)},
        "codebook": {"size": 256},
        "adversarial": {"start_step": 700, "layers": 2, "channels": 16},
        "train": {"steps": 1500, "batch_size": 64},
    },
    "cifar10": {
        "model": {"channels": 32, "multipliers": (1, 2, 2)},
        "codebook": {"size": 512},
        "adversarial": {"start_step": 5000, "layers": 2},
        "train": {"steps": 20_000},
    },
    "emoji": {
        "model": {"channels": 32, "multipliers": (1, 2, 2)},
        "codebook": {"size": 256},
        "adversarial": {"start_step": 700, "layers": 2},
        "train": {"steps": 4000, "batch_size": 64},
    },
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = common.new("vqvae", "ldm", "codebook", "reconstruction", "adversarial", "train.discriminator")
    config.model.update(architecture="ldm", channels=16, multipliers=(1, 2), attention_resolutions=(), norm_groups=8)
    config.model.update(latent_channels=8, z_channels=8)
    config.loss.likelihood = "l1"
    config.adversarial.update(weight=0.75, start_step=200, channels=32, layers=1)
    config.train.update(steps=600, batch_size=128, learning_rate=1e-3, beta1=0.5)
    config.train.discriminator.learning_rate = 5e-4
    return common.vary(config, variant, VARIANTS)
