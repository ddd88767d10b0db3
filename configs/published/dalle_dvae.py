"""The discrete autoencoder of DALL-E: 256x256 images as 32x32 tokens of 8192.

    python launch.py import --source=DIR --config=configs/published/dalle_dvae.py --workdir=runs/dalle_dvae
    python launch.py train --config=configs/published/dalle_dvae.py --config.data.dir=DIR --workdir=runs/dvae

OpenAI's encoder.pkl and decoder.pkl (cdn.openai.com/dall-e), both in the folder DIR.

Time: not trained by us; the paper's: 3M steps of 512 images.
Score: not measured.
Setting: Ramesh et al. 2021, appendix A.2.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.new("dvae", "dalle", "relaxed_codebook", "reconstruction", "annealed_kl", "published")
    common.add(config, "model.pixel_range")
    config.data.update(name="folder", image_size=256, channels=3, num_classes=0, flip=True)
    config.model.update(architecture="dalle", channels=256, groups=4, blocks=2, latent_channels=128)
    config.codebook.update(size=8192, temperature=1.0, temperature_end=0.0625, temperature_steps=150_000)
    config.loss.update(likelihood="logit_laplace", kl_weight_start=0.0, kl_weight=6.6, kl_steps=5000)
    config.train.update(steps=3_000_000, batch_size=512, learning_rate=1e-4, weight_decay=1e-4, beta2=0.999)
    config.train.update(clip_norm=0.0, ema_decay=0.999, num_preview_samples=16)
    config.train.update(sample_every=10_000, checkpoint_every=5000)
    config.published.naming = "dalle"
    return config
