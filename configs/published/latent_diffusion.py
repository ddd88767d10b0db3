"""Latent diffusion (Rombach et al. 2022): unconditional models of CelebA-HQ, FFHQ, LSUN; class-conditional of ImageNet.

    python launch.py import --source=celeba.ckpt --config=configs/published/latent_diffusion.py:celebahq \
                            --workdir=runs/ldm_celebahq

CompVis's celeba.zip, ffhq.zip, lsun_bedrooms.zip, lsun_churches.zip (model.ckpt of each) and cin256-v2 (model.ckpt).
Folders of diffusers (CompVis/ldm-celebahq-256) need no --config.

Time: not trained by us.
Score: the paper's: FID 5.11 on CelebA-HQ, 4.98 on FFHQ, 2.95 on LSUN bedrooms, 4.02 on churches, 3.60 on ImageNet.
Setting: Rombach et al. 2022, appendix E, and the repository's config.yaml of each model: batches of 48 (celebahq), 96
(churches) and 1200 (imagenet), learning rates 9.6e-5, 5e-5 and 1e-4. Steps are ours for celebahq and churches. Churches
was trained with an L1 loss; here the loss is the squared error.
"""

from ml_collections import ConfigDict

from configs import common
from configs.published import autoencoder_kl, vqgan

VARIANTS = {
    "celebahq": {},
    "churches": {
        "model": {
            "channels": 192,
            "multipliers": (1, 2, 2, 4, 4),
            "attention_resolutions": (32, 16, 8, 4),
            "time_conditioning": "scale_shift",
            "resample": "residual",
        },
        "diffusion": {"schedule": "scaled_linear(beta_min=0.0015,beta_max=0.0155)"},
        "train": {"batch_size": 96, "learning_rate": 5e-5, "warmup_steps": 10_000},
    },
    "imagenet": {
        "data": {"num_classes": 1000},
        "model": {"channels": 192, "multipliers": (1, 2, 3, 5), "attention_resolutions": (32, 16, 8)},
        "train": {"steps": 178_000, "batch_size": 1200, "learning_rate": 1e-4},
        "sampler": {"guidance": 3.0},
    },
}


def get_config(variant: str = "celebahq") -> ConfigDict:
    config = common.new("latent", "codec", "unet", "diffusion", "labels", "diffusion_sampler", "published")
    common.add(config, "model.resample", "model.norm_epsilon", "model.time_embedding", "model.downsample_padding")
    common.add(config, "model.initializer", "model.head_channels" if variant == "celebahq" else "model.heads")
    config.data.update(name="folder", image_size=256, channels=3, num_classes=0, flip=True)
    config.model.update(channels=224, multipliers=(1, 2, 3, 4), blocks=2, attention_resolutions=(32, 16, 8))
    config.model.update(norm_epsilon=1e-5, norm_min_channels=0, time_embedding="adm", downsample_padding="symmetric")
    config.model.update(time_conditioning="add", initializer="torch")
    config.diffusion.update(schedule="scaled_linear(beta_min=0.0015,beta_max=0.0195)", parameterization="eps")
    config.diffusion.update(class_conditional=False, label_dropout=0.0)
    config.train.update(steps=500_000, batch_size=48, learning_rate=9.6e-5, learning_rate_schedule="constant")
    config.train.update(ema_decay=0.9999, sample_every=10_000, num_preview_samples=16, checkpoint_every=5000)
    config.sampler.update(name="ddim", steps=200, grid="leading", threshold="none")
    config.published.naming = "compvis"
    if variant == "imagenet":
        common.add(config, "conditions.label_token", "model.transformer_depth")
        config.conditions.label_token.update(width=512, dropout=0.1)
    if variant == "churches":
        config.model.heads = 8
    codec = autoencoder_kl.get_config("f8") if variant == "churches" else vqgan.get_config("f4")
    common.add_parts(config, codec=codec)
    return common.vary(config, variant, VARIANTS)
