"""Causal transformer over the tokens of a VQ-VAE-2, the coarse level first, or of any discrete autoencoder.

    python launch.py train --config=configs/prior_transformer.py --config.codec=runs/vqvae2 --workdir=runs/prior
    python launch.py train --config=configs/prior_transformer.py:fashion_mnist --config.codec=runs/vqvae2_fashion \
                           --config.data.dir=DIR --workdir=runs/prior_fashion

Time: 101 s on two cores of an AMD EPYC.
Score: 4.33 bits per token of configs/vqvae2.py on the 360 test digits; uniform is 6 (`evaluate --metrics=nll`).
Setting: replaces the PixelSNAILs of Razavi et al. 2019; the network is GPT-2's, made small.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "digits": {},
    "fashion_mnist": {"model": {"width": 128, "layers": 4}, "train": {"steps": 2000, "batch_size": 64}},
    "cifar10": {"model": {"width": 256, "layers": 8, "heads": 8}, "train": {"steps": 20_000}},
    "emoji": {"model": {"width": 128, "layers": 6}, "train": {"steps": 4000}},
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = common.new("prior", "codec", "transformer_prior", "token_sampler")
    config.codec = "runs/vqvae2"
    config.model.update(architecture="transformer", width=64, layers=3, heads=4, dropout=0.1, condition="label")
    config.train.update(steps=600, batch_size=128, learning_rate=1e-3)
    return common.vary(config, variant, VARIANTS)
