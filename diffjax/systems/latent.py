"""Latent diffusion: diffusion in the latents of a trained autoencoder (Rombach et al. 2022).

Stable Diffusion 1 and 2 by their configs: a KL autoencoder, the states of a frozen CLIP, eps or v.
"""

from diffjax.errors import UserError
from diffjax.systems import spaces
from diffjax.systems.conditions import make_conditions
from diffjax.systems.denoising import make_system
from diffjax.systems.networks import make_denoiser
from diffjax.systems.parts import described
from diffjax.systems.process import Process
from diffjax.typing import ImageSpec, System, Variables


def build(
    config,
    spec: ImageSpec,
    codec: tuple[System, Variables] | None = None,
    clip: tuple[System, Variables] | None = None,
) -> System:
    """The system of `config` in the latents of `codec`. Raises UserError for what does not exist or does not fit."""
    if codec is None:
        raise UserError("system=latent diffuses the latents of a trained autoencoder: set --config.codec=WORKDIR")
    process = Process.from_config(config.diffusion)
    space = spaces.latents(*codec)
    conditions = make_conditions(config, spec, space, clip and described(clip[0].clip, clip[1]))
    network = make_denoiser(
        config, spec, space.shape, label_rows=conditions.label_rows, learns_variance=process.learns_variance
    )
    parts = {"codec": codec} | ({"clip": clip} if clip else {})
    return make_system(config, spec, process, space, conditions, network, parts)
