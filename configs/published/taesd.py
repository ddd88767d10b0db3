"""TAESD: a tiny autoencoder for the latents of Stable Diffusion 1 and 2, for previews.

    python launch.py import --source=taesd --config=configs/published/taesd.py --workdir=runs/taesd
    python launch.py sample --workdir=runs/sd15 --prompt="a photo of a cat" --codec=runs/taesd --out=samples.png

The folder taesd has taesd_encoder.pth and taesd_decoder.pth of github.com/madebyollin/taesd, or their .safetensors.
Folders of diffusers (madebyollin/taesd) need no --config.

Time: not trained by us.
Score: not measured.
Setting: github.com/madebyollin/taesd; its training code is not published. As a config of our own it is a VAE with a
small weight of the KL and a discriminator.
"""

from ml_collections import ConfigDict

from configs import common
from configs.published import autoencoder_kl


def get_config() -> ConfigDict:
    config = autoencoder_kl.get_config()
    common.remove(config, "model")
    common.add(config, "taesd")
    config.model.update(architecture="taesd", channels=64, blocks=3, factor=8, latent_channels=4)
    config.published.naming = "taesd"
    return config
