"""DALL-E's discrete autoencoder (dVAE): tokens relaxed by Gumbel-softmax.

    python launch.py train --config=configs/dvae.py --workdir=runs/dvae
    python launch.py train --config=configs/dvae.py:fashion_mnist --config.data.dir=DIR --workdir=runs/dvae_fashion

Time: under 2 min on two cores of an AMD EPYC.
Score: MSE 0.023 on the 360 test digits, perplexity 30 of 64 tokens
(`launch.py evaluate --metrics=reconstruction --num=360`). Fashion-MNIST: docs/results.
Setting: Ramesh et al. 2021, app. A: 8192 tokens, 256 channels, temperature 1 to 1/16 over 150,000 of 3M steps, KL
weight 0 to 6.6 over 5,000, learning rate 1e-4, batch 512; here smaller and shorter, with a smaller KL weight.
"""

from ml_collections import ConfigDict

from configs import common

LARGER = {"channels": 32, "groups": 3, "latent_channels": 64}
VARIANTS = {
    "digits": {},
    "fashion_mnist": {
        "model": LARGER,
        "codebook": {"size": 256, "temperature_steps": 1200},
        "train": {"steps": 1500, "batch_size": 64},
    },
    "cifar10": {"model": LARGER, "codebook": {"size": 512, "temperature_steps": 15_000}, "train": {"steps": 20_000}},
    "emoji": {
        "model": LARGER,
        "codebook": {"size": 256, "temperature_steps": 1200},
        "train": {"steps": 4000, "batch_size": 64},
    },
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = common.new("dvae", "dalle", "relaxed_codebook", "reconstruction", "annealed_kl")
    config.model.update(architecture="dalle", channels=32, groups=2, blocks=2, latent_channels=32)
    config.codebook.update(size=64, temperature_steps=500)
    config.loss.update(likelihood="logit_laplace(min_scale=0.1)", kl_weight=1.0, kl_steps=500)
    config.train.update(steps=1000, batch_size=128, learning_rate=3e-3)
    return common.vary(config, variant, VARIANTS)
