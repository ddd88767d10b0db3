"""Use of a latent under a strong autoregressive decoder: Gaussian (`:vae`) or discrete (`:vqvae`), else identical.

    python launch.py reproduce --experiment=experiments/posterior_collapse.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

trains both on Fashion-MNIST at 14x14, with three seeds each. One of them, on the digits:

    python launch.py train --config=configs/posterior_collapse.py:vae --workdir=runs/collapse_vae

Time: both on Fashion-MNIST take about 25 min per seed on two cores of an AMD EPYC.
Score: after 800 steps of 64 images the VAE's KL is 1.4 bits per image. VQ-VAE uses all its codebook entries, with
perplexity 20 of 64, and its decoder needs 3.58 bits/dim, the VAE's 3.92 (docs/results).
Setting: the claim of van den Oord et al. 2017, sec. 1: a powerful decoder does not ignore discrete latents; here a
gated PixelCNN with a receptive field of 12 pixels up and to the left.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {"vae": ("kl", "sampler.temperature"), "vqvae": ("codebook",)}  # the groups in which they differ


def get_config(variant: str = "vae") -> ConfigDict:
    config = common.new(variant, "vqvae", "pixelcnn", "reconstruction", *common.choose(variant, VARIANTS))
    if variant == "vqvae":
        config.codebook.dead_code_threshold = 0.0  # no restarts, so that usage is due to training alone
    config.model.update(architecture="vqvae", channels=32, residual_channels=16, blocks=2, factor=2, latent_channels=16)
    config.loss.likelihood = "logistic"
    config.train.update(steps=600, batch_size=64, learning_rate=1e-3, sample_every=0)
    return config
