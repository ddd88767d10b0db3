"""One module per system of the line: `build(config, spec)` makes a System of it."""

from diffjax.errors import unknown
from diffjax.systems import (
    classifier,
    clip,
    ddgan,
    ddpm,
    dvae,
    gan,
    glide,
    latent,
    pca,
    prior,
    unclip,
    unclip_prior,
    vae,
    vqvae,
)
from diffjax.typing import ImageSpec, System

_SYSTEMS = {
    "classifier": classifier,
    "clip": clip,
    "ddgan": ddgan,
    "ddpm": ddpm,
    "dvae": dvae,
    "gan": gan,
    "glide": glide,
    "latent": latent,
    "pca": pca,
    "prior": prior,
    "unclip": unclip,
    "unclip_prior": unclip_prior,
    "vae": vae,
    "vqvae": vqvae,
}


def build(config, spec: ImageSpec, **parts) -> System:
    """The system that `config.system` names, for images of `spec`, on trained `parts`: (System, Variables) each.

    Raises UserError where they do not fit.
    """
    if config.system not in _SYSTEMS:
        raise unknown("system", config.system, _SYSTEMS)
    return _SYSTEMS[config.system].build(config, spec, **parts)
