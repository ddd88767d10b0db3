"""Latent diffusion on scenes of shapes: configs/glide_base.py in the 8x8 latents of an autoencoder.

    python launch.py train --config=configs/latent_shapes.py --workdir=runs/latent_shapes
    python launch.py sample --workdir=runs/latent_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --out=samples.png

Trains the autoencoder into runs/latent_shapes/codec, and then the diffusion model. Variants: `:vq` diffuses the latents
of a VQ-VAE before quantisation, `:f2` and `:f8` those of other Gaussian autoencoders; in `:clip` a frozen CLIP encodes
the captions, as in Stable Diffusion.

Time: 47 min on two cores of an AMD EPYC, 14 of them the autoencoder's.
Score: captions shown 59.8 +- 2.2 % (`launch.py evaluate --metrics=caption_accuracy --num=500`). With fewer times of low
noise, logit_normal(mean=1.5,std=1.5), from 22.8 to 65.6 % in four trainings (docs/results/training_times.md). With
uniform times and former initial weights of the text transformer 36.6 +- 2.2 %, and with `:clip` 33.8 +- 2.1 %, which
was not retrained.
Setting: Rombach et al. 2022: f = 8, 32x32 latents, 320 channels, multipliers 1, 2, 4, 4, a text transformer of 32
layers of 1280, later a frozen CLIP of 768 (Stable Diffusion: conditions.clip_text); here smaller.
"""

from ml_collections import ConfigDict

from configs import common, glide_base, kl, vqvae

VARIANTS = {  # the autoencoder, its changes, and the height of its latents
    "f4": (kl, {}, 8),
    "clip": (kl, {}, 8),
    "f2": (kl, {"multipliers": (1, 2)}, 16),
    "f8": (kl, {"multipliers": (1, 2, 2, 4)}, 4),
    "vq": (vqvae, {"latent_channels": 4}, 8),
}


def get_config(variant: str = "f4") -> ConfigDict:
    autoencoder, codec_model, height = common.choose(variant, VARIANTS)
    codec = autoencoder.get_config("shapes")
    codec.model.update(codec_model)

    config = glide_base.get_config()
    common.add(config, "codec", "model.transformer_depth")
    common.add_parts(config, codec=codec)
    common.remove(config, "diffusion.downsample", "diffusion.crop")
    if variant == "clip":
        common.add(config, "clip", "conditions.clip_text")
        common.add_parts(config, clip="clip_shapes.py")
        common.remove(config, "text", "conditions.caption")  # CLIP encodes the captions
    config.system = "latent"
    config.model.channels = 64
    config.model.multipliers = (1, 2) if height > 4 else (2,)
    config.model.attention_resolutions = tuple(side for side in (height, height // 2) if 4 <= side <= 8)
    config.train.steps = 5000
    config.sampler.threshold = "none"
    return config
