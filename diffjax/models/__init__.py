"""One module per system of the line: `build(config, spec)` makes a System of it."""

from diffjax.errors import unknown
from diffjax.models import clip
from diffjax.models.autoencoders import dvae, vae, vqvae
from diffjax.models.autoregressive import prior
from diffjax.models.diffusion import classifier, ddpm, latent, unclip_prior
from diffjax.models.gan import ddgan, gan
from diffjax.models.pipelines import glide, pca, unclip
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
