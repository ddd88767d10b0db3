"""Gated PixelCNN over the tokens of a VQ-VAE.

    python launch.py train --config=configs/prior_pixelcnn.py --config.codec=runs/vqvae --workdir=runs/prior_pixelcnn
    python launch.py train --config=configs/prior_pixelcnn.py:fashion_mnist --config.codec=runs/vqvae_fashion \
                           --config.data.dir=DIR --workdir=runs/prior_pixelcnn_fashion

Time: 62 s on two cores of an AMD EPYC.
Score: 3.32 bits per token of configs/vqvae.py on the 360 test digits; uniform is 6 (`evaluate --metrics=nll`).
Setting: van den Oord et al. 2017 over 32x32 tokens of ImageNet; here smaller.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "digits": {},
    "fashion_mnist": {"model": {"features": 64, "layers": 8}, "train": {"steps": 2000, "batch_size": 64}},
    "cifar10": {"model": {"features": 128, "layers": 12}, "train": {"steps": 20_000}},
    "emoji": {"model": {"features": 64, "layers": 8}, "train": {"steps": 4000}},
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = common.new("prior", "codec", "pixelcnn_prior", "token_sampler")
    config.codec = "runs/vqvae"
    config.model.update(architecture="pixelcnn", features=48, layers=6, kernel=3, dropout=0.1, condition="label")
    config.train.update(steps=600, batch_size=128, learning_rate=1e-3)
    return common.vary(config, variant, VARIANTS)
