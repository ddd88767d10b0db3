"""VQ-VAE-2: two levels of tokens; the coarse level conditions the fine level.

    python launch.py train --config=configs/vqvae2.py --workdir=runs/vqvae2
    python launch.py train --config=configs/vqvae2.py:fashion_mnist --config.data.dir=DIR --workdir=runs/vqvae2_fashion

Time: 26 s on two cores of an AMD EPYC.
Score: MSE 0.0088 on the 360 test digits, perplexities 48 and 54 of 64 tokens
(`launch.py evaluate --metrics=reconstruction --num=360`). Fashion-MNIST: docs/results.
Setting: Razavi et al. 2019: 128 channels, 512 entries of 64 channels per level, images of 256 pixels; here smaller.
"""

from ml_collections import ConfigDict

from configs import common, vqvae

LARGER = {"channels": 64, "residual_channels": 32, "latent_channels": 32, "z_channels": 64}
VARIANTS = {
    "digits": {},
    "fashion_mnist": {"model": LARGER, "codebook": {"size": 256}, "train": {"steps": 1500, "batch_size": 64}},
    "cifar10": {"model": LARGER | {"factor": 4}, "codebook": {"size": 512}, "train": {"steps": 20_000}},
    "emoji": {"model": LARGER | {"factor": 4}, "codebook": {"size": 256}, "train": {"steps": 4000, "batch_size": 64}},
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = vqvae.get_config()
    common.add(config, "model.z_channels", "model.coarser_factors")
    config.model.update(z_channels=32, coarser_factors=(2,))
    return common.vary(config, variant, VARIANTS)
