"""VQ-VAE: a discrete latent with a codebook of running means.

    python launch.py train --config=configs/vqvae.py --workdir=runs/vqvae
    python launch.py train --config=configs/vqvae.py:fashion_mnist --config.data.dir=DIR --workdir=runs/vqvae_fashion

Time: 15 s on two cores of an AMD EPYC.
Score: MSE 0.0097 on the 360 test digits, perplexity 54 of 64 tokens
(`launch.py evaluate --metrics=reconstruction --num=360`). Fashion-MNIST: docs/results.
Setting: van den Oord et al. 2017: 256 channels, 512 entries, batch 128, learning rate 2e-4, 250,000 steps; here
smaller.
"""

from ml_collections import ConfigDict

from configs import common

LARGER = {"channels": 64, "residual_channels": 32, "factor": 4, "latent_channels": 32}
VARIANTS = {
    "digits": {},
    "fashion_mnist": {"model": LARGER, "codebook": {"size": 256}, "train": {"steps": 1500, "batch_size": 64}},
    "cifar10": {"model": LARGER, "codebook": {"size": 512}, "train": {"steps": 20_000}},
    "shapes": {
        "model": LARGER,
        "codebook": {"size": 512},
        "loss": {"likelihood": "l2(variance=0.05)"},
        "train": {"steps": 4000, "batch_size": 64},
    },
    "emoji": {"model": LARGER, "codebook": {"size": 256}, "train": {"steps": 4000, "batch_size": 64}},
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = common.new("vqvae", "vqvae", "codebook", "reconstruction")
    config.model.update(architecture="vqvae", channels=32, residual_channels=16, blocks=2, factor=2, latent_channels=16)
    config.loss.likelihood = "l2(variance=0.2)"
    config.train.update(steps=600, batch_size=128, learning_rate=1e-3)
    return common.vary(config, variant, VARIANTS)
