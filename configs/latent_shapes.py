"""Latent diffusion on scenes of shapes: configs/glide_base.py in an autoencoder's 8x8 latents.

    python launch.py train --config=configs/latent_shapes.py --workdir=runs/latent_shapes
    python launch.py sample --workdir=runs/latent_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --out=samples.png

Trains the autoencoder into runs/latent_shapes/codec, and then the diffusion. `:vq` behind the file's name takes latents
before they are quantised, `:f2` and `:f8` others of a Gaussian.

Time: 47 min on two cores of an AMD EPYC, 14 of them the autoencoder's.
Score: captions shown 36.6 +- 2.2 % (`launch.py evaluate --metrics=captions --num=500`).
Setting: Rombach et al. 2022: f = 8, 32x32 latents, 320 channels, multipliers 1, 2, 4, 4, a text transformer of 32
layers of 1280, later a frozen CLIP of 768 (Stable Diffusion: conditions.clip_text); here smaller.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.config import load_file
from diffjax.errors import unknown

HERE = Path(__file__).parent
LATENTS = {  # the autoencoder, what differs in it, and the side of its latents
    "f4": ("kl.py:shapes", {}, 8),
    "f2": ("kl.py:shapes", {"model.multipliers": (1, 2)}, 16),
    "f8": ("kl.py:shapes", {"model.multipliers": (1, 2, 2, 4)}, 4),
    "vq": ("vqvae.py:shapes", {"model.latent_channels": 4}, 8),
}


def get_config(latent: str = "f4") -> ConfigDict:
    if latent not in LATENTS:
        raise unknown("latent of configs/latent_shapes.py", latent, LATENTS)
    file, changes, side = LATENTS[latent]
    codec = load_file(f"{HERE}/{file}")
    codec.update_from_flattened_dict(changes)

    config = load_file(f"{HERE}/glide_base.py")
    with config.unlocked():
        config.parts = ConfigDict({"codec": codec})  # trained first, into a folder of the workdir
        config.codec = "@codec"  # whose latents: a part, or the workdir of one that is trained
        del config.diffusion.downsample, config.diffusion.crop
        config.model.transformer_depth = 1  # layers of latent diffusion's transformer at each attention
    config.system = "latent"  # the module of diffjax/systems
    config.model.channels = 64  # at the first level
    config.model.multipliers = (1, 2) if side > 4 else (2,)  # of the channels at each level
    config.model.attention_resolutions = tuple(s for s in (side, side // 2) if 4 <= s <= 8)  # heights that attend
    config.sampler.threshold = "none"  # latents have no range
    return config
