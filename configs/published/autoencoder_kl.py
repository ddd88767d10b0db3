"""KL-regularised autoencoders of latent diffusion and Stable Diffusion.

    python launch.py import --source=kl-f8.ckpt --config=configs/published/autoencoder_kl.py:f8 --workdir=runs/kl_f8

CompVis's kl-f4.zip, kl-f8.zip, kl-f16.zip and kl-f32.zip (model.ckpt of each); `:stable_diffusion`: the first stage of
Stable Diffusion 1 and 2, and sd-vae-ft-mse-original. Folders of diffusers need no --config.

Time: not trained by us.
Score: not measured.
Setting: configs/autoencoder of github.com/CompVis/latent-diffusion: KL weight 1e-6, discriminator with weight 0.5 from
step 50,001, 256x256 crops, learning rate 4.5e-6 per image of a batch of 12. The number of steps is ours.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {  # of latent diffusion, table 8: factor, channels and attention
    "stable_diffusion": {"model": {"multipliers": (1, 2, 4, 4), "latent_channels": 4, "z_channels": 4}},
    "f4": {"model": {"multipliers": (1, 2, 4), "latent_channels": 3, "z_channels": 3}},
    "f8": {"model": {"multipliers": (1, 2, 4, 4), "latent_channels": 4, "z_channels": 4}},
    "f16": {
        "model": {
            "multipliers": (1, 1, 2, 2, 4),
            "latent_channels": 16,
            "z_channels": 16,
            "attention_resolutions": (16,),
        }
    },
    "f32": {
        "model": {
            "multipliers": (1, 1, 2, 2, 4, 4),
            "latent_channels": 64,
            "z_channels": 64,
            "attention_resolutions": (16, 8),
        }
    },
}


def get_config(variant: str = "stable_diffusion") -> ConfigDict:
    config = common.new("vae", "ldm", "reconstruction", "kl", "adversarial", "train.discriminator", "published")
    common.add(config, "sampler.temperature")
    config.data.update(name="folder", image_size=256, channels=3, num_classes=0, flip=True)
    config.model.update(architecture="ldm", channels=128, blocks=2, attention_resolutions=(), norm_min_channels=0)
    config.loss.update(likelihood="l1", beta=1e-6)
    config.adversarial.update(weight=0.5, start_step=50_001, channels=64, layers=3)
    config.train.update(steps=250_000, batch_size=12, learning_rate=5.4e-5, beta1=0.5, beta2=0.9)
    config.train.update(learning_rate_schedule="constant", sample_every=10_000, checkpoint_every=10_000)
    config.train.discriminator.learning_rate = 5.4e-5
    config.published.naming = "compvis"
    return common.vary(config, variant, VARIANTS)
