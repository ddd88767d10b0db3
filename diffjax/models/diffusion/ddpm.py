"""Denoising diffusion on pixels: DDPM (Ho et al. 2020) and, by its config, all that followed it.

Improved DDPM, ADM and DDIM; told a caption the base of GLIDE, told a CLIP embedding unCLIP's decoder, told a smaller
picture an upsampler, told a picture with a part erased a model for in-painting: see conditions.py.
"""

from diffjax.models.diffusion import data_space
from diffjax.models.diffusion.model import make_picture_system
from diffjax.typing import ImageSpec, System, Variables


def build(config, spec: ImageSpec, clip: tuple[System, Variables] | None = None) -> System:
    """The system of `config` for images of `spec`. Raises UserError for choices that do not exist or do not fit."""
    space = data_space.pixels(spec, config.diffusion.get("downsample", 1))
    return make_picture_system(config, spec, space, {"clip": clip} if clip else {})
