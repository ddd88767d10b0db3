"""Variational autoencoder with a factorised decoder.

    python launch.py train --config=configs/vae.py --workdir=runs/vae
    python launch.py train --config=configs/vae.py:fashion_mnist --config.data.dir=DIR --workdir=runs/vae_fashion

Time: 15 s on two cores of an AMD EPYC.
Score: on the 360 test digits an ELBO of 3.93 bits/dim, 3.88 importance-weighted (`evaluate --metrics=nll --num=360`);
MSE of the reconstruction 0.020. Fashion-MNIST: docs/results.
Setting: Kingma & Welling 2014, with a convolutional network and a discretised logistic likelihood.
"""

from ml_collections import ConfigDict

from configs import common

LARGER = {"channels": 64, "residual_channels": 32, "factor": 4, "latent_channels": 8}
VARIANTS = {
    "digits": {},
    "fashion_mnist": {"model": LARGER, "train": {"steps": 1500, "batch_size": 64}},
    "cifar10": {"model": LARGER, "train": {"steps": 20_000}},
    "emoji": {"model": LARGER, "train": {"steps": 4000, "batch_size": 64}},
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = common.new("vae", "vqvae", "reconstruction", "kl", "sampler.temperature")
    config.model.update(architecture="vqvae", channels=32, residual_channels=16, blocks=2, factor=2, latent_channels=4)
    config.loss.update(likelihood="logistic", beta=1.0)
    config.train.update(steps=600, batch_size=128, learning_rate=1e-3)
    return common.vary(config, variant, VARIANTS)
