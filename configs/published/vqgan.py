"""VQ-regularised autoencoders of latent diffusion, VQGANs.

    python launch.py import --source=vq-f4.ckpt --config=configs/published/vqgan.py:f4 --workdir=runs/vq_f4

CompVis's vq-f4.zip, vq-f4-noattn.zip, vq-f8.zip, vq-f8-n256.zip and vq-f16.zip (model.ckpt of each). Folders of
diffusers need no --config.

Time: not trained by us.
Score: not measured.
Setting: config.yaml of the models in github.com/CompVis/latent-diffusion: discriminator with weight 0.75 from the first
step (vq-f16: from step 250,001), 256x256 crops, learning rate 4.5e-6 per image. Batch size and steps are ours.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "f4": {"model": {"multipliers": (1, 2, 4), "latent_channels": 3, "z_channels": 3}, "codebook": {"size": 8192}},
    "f4_noattn": {
        "model": {"multipliers": (1, 2, 4), "latent_channels": 3, "z_channels": 3, "middle_attention": False},
        "codebook": {"size": 8192},
    },
    "f8": {
        "model": {
            "multipliers": (1, 2, 2, 4),
            "latent_channels": 4,
            "z_channels": 4,
            "attention_resolutions": (32,),
        },
        "codebook": {"size": 16_384},
    },
    "f8_n256": {
        "model": {
            "multipliers": (1, 2, 2, 4),
            "latent_channels": 4,
            "z_channels": 4,
            "attention_resolutions": (32,),
        },
        "codebook": {"size": 256},
    },
    "f16": {
        "model": {
            "multipliers": (1, 1, 2, 2, 4),
            "latent_channels": 8,
            "z_channels": 8,
            "attention_resolutions": (16,),
        },
        "codebook": {"size": 16_384},
    },
}


def get_config(variant: str = "f4") -> ConfigDict:
    config = common.new("vqvae", "ldm", "codebook", "reconstruction", "adversarial", "train.discriminator", "published")
    common.add(config, "model.middle_attention")
    config.data.update(name="folder", image_size=256, channels=3, num_classes=0, flip=True)
    config.model.update(architecture="ldm", channels=128, blocks=2, attention_resolutions=(), norm_min_channels=0)
    config.codebook.update(update_rule="gradient", dead_code_threshold=0.0, init="normal")
    config.loss.likelihood = "l1"
    config.adversarial.update(weight=0.75, start_step=1, channels=64, layers=3)
    config.train.update(steps=250_000, batch_size=8, learning_rate=3.6e-5, beta1=0.5, beta2=0.9)
    config.train.update(learning_rate_schedule="constant", sample_every=10_000, checkpoint_every=10_000)
    config.train.discriminator.learning_rate = 3.6e-5
    config.published.naming = "compvis"
    return common.vary(config, variant, VARIANTS)
