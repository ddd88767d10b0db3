"""Denoising diffusion on pixels: DDPM (Ho et al. 2020) and, by its config, all that followed it.

Improved DDPM, ADM and DDIM; told a caption the base of GLIDE, told a CLIP embedding unCLIP's decoder, told a smaller
picture an upsampler, told a picture with a part erased a model for in-painting: see conditions.py.
"""

from diffjax.systems import spaces
from diffjax.systems.conditions import make_conditions
from diffjax.systems.denoising import make_system
from diffjax.systems.networks import make_denoiser
from diffjax.systems.parts import described
from diffjax.systems.process import Process
from diffjax.typing import ImageSpec, System, Variables


def build(config, spec: ImageSpec, clip: tuple[System, Variables] | None = None) -> System:
    """The system of `config` for images of `spec`. Raises UserError for choices that do not exist or do not fit."""
    process = Process.from_config(config.diffusion)
    space = spaces.pixels(spec, config.diffusion.get("downsample", 1))
    conditions = make_conditions(config, spec, space, clip and described(clip[0].clip, clip[1]))
    network = make_denoiser(
        config, spec, space.shape, label_rows=conditions.label_rows, learns_variance=process.learns_variance
    )
    return make_system(config, spec, process, space, conditions, network, {"clip": clip} if clip else {})
