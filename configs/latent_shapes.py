"""Latent diffusion on scenes of shapes: configs/glide_base.py in an autoencoder's 8x8 latents.

    python launch.py train --config=configs/latent_shapes.py --workdir=runs/latent_shapes
    python launch.py sample --workdir=runs/latent_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --out=samples.png

Trains the autoencoder into runs/latent_shapes/codec, and then the diffusion. `:vq` behind the file's name takes latents
before they are quantised, `:f2` and `:f8` others of a Gaussian; with `:clip` a frozen CLIP reads the captions, as in
Stable Diffusion.

Time: 47 min on two cores of an AMD EPYC, 14 of them the autoencoder's.
Score: captions shown 64.6 +- 2.1 % (`launch.py evaluate --metrics=captions --num=500`); at uniform times, with the text
transformer's old initial values, 36.6 +- 2.2 %, and with `:clip` 33.8 +- 2.1 %, which was not trained again.
Setting: Rombach et al. 2022: f = 8, 32x32 latents, 320 channels, multipliers 1, 2, 4, 4, a text transformer of 32
layers of 1280, later a frozen CLIP of 768 (Stable Diffusion: conditions.clip_text); here smaller.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.errors import unknown
from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent
KINDS = {  # the autoencoder, what differs in it, and the side of its latents
    "f4": ("kl.py:shapes", {}, 8),
    "clip": ("kl.py:shapes", {}, 8),
    "f2": ("kl.py:shapes", {"model.multipliers": (1, 2)}, 16),
    "f8": ("kl.py:shapes", {"model.multipliers": (1, 2, 2, 4)}, 4),
    "vq": ("vqvae.py:shapes", {"model.latent_channels": 4}, 8),
}


def get_config(kind: str = "f4") -> ConfigDict:
    if kind not in KINDS:
        raise unknown("kind of configs/latent_shapes.py", kind, KINDS)
    file, changes, side = KINDS[kind]
    codec = load_file(f"{HERE}/{file}")
    codec.update_from_flattened_dict(changes)

    config = load_file(f"{HERE}/glide_base.py")
    with config.unlocked():
        config.parts = ConfigDict({"codec": codec})  # trained first, into a folder of the workdir
        config.codec = "@codec"  # whose latents: a part, or the workdir of one that is trained
        del config.diffusion.downsample, config.diffusion.crop
        config.model.transformer_depth = 1  # layers of latent diffusion's transformer at each attention
        if kind == "clip":
            del config.text  # as the CLIP reads it
            config.parts.clip = load_file(f"{HERE}/clip_shapes.py")  # trained first too
            config.clip = "@clip"  # that reads the captions: a part, or the workdir of one that is trained
            config.conditions = ConfigDict()
            config.conditions.clip_text = ConfigDict()
            config.conditions.clip_text.states = True  # of every token
            config.conditions.clip_text.embedding = False  # of the whole caption
            config.conditions.clip_text.dropout = 0.1  # share of captions withheld, for classifier-free guidance
    config.system = "latent"  # the module of diffjax/models
    config.model.channels = 64  # at the first level
    config.model.multipliers = (1, 2) if side > 4 else (2,)  # of the channels at each level
    config.model.attention_resolutions = tuple(s for s in (side, side // 2) if 4 <= s <= 8)  # heights that attend
    config.diffusion.times = "logit_normal(mean=1.5,std=1.5)"  # less at little noise: details are the autoencoder's
    config.train.steps = 5000  # updates of the weights
    config.sampler.threshold = "none"  # latents have no range
    return config
