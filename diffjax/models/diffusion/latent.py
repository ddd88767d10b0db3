"""Latent diffusion: diffusion in the latents of a trained autoencoder (Rombach et al. 2022).

Stable Diffusion 1 and 2 by their configs: a KL autoencoder, the states of a frozen CLIP, eps or v.
"""

from diffjax.errors import UserError
from diffjax.models.diffusion import data_space
from diffjax.models.diffusion.model import make_picture_system
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
    return make_picture_system(
        config, spec, data_space.latents(*codec), {"codec": codec} | ({"clip": clip} if clip else {})
    )
