"""Builds the model of a config."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from diffjax.errors import UserError, unknown
from diffjax.models import clip
from diffjax.models.autoencoders import dvae, vae, vqvae
from diffjax.models.base import Model
from diffjax.models.diffusion import classifier, variants
from diffjax.models.gan import ddgan, gan
from diffjax.models.pipelines import glide, pca, unclip
from diffjax.models.priors import autoregressive, masked
from diffjax.typing import ImageSpec

_BUILDERS: dict[str, Callable[..., Model]] = {
    "classifier": classifier.build,
    "clip": clip.build,
    "ddgan": ddgan.build,
    "ddpm": variants.build_ddpm,
    "dvae": dvae.build,
    "gan": gan.build,
    "glide": glide.build,
    "latent": variants.build_latent,
    "masked_prior": masked.build,
    "pca": pca.build,
    "prior": autoregressive.build,
    "unclip": unclip.build,
    "unclip_prior": variants.build_unclip_prior,
    "vae": vae.build,
    "vqvae": vqvae.build,
}


def build(config: ConfigDict, spec: ImageSpec, **parts: Any) -> Model:
    """Builds the model that `config.system` names.

    Args:
      spec: size, channels and classes of the images.
      parts: trained models that it uses, by the config's field: (Model, Variables), or TrainedStage for the stages of
        a pipeline. Variables may be shapes.

    Raises:
      UserError: an unknown name, or fields that are invalid or do not fit.
    """
    if config.system not in _BUILDERS:
        raise unknown("system", config.system, _BUILDERS)
    if config.system != "ddpm" and (prob := config.data.get("augment", {}).get("prob", 0.0)):
        raise UserError(
            f"data.augment.prob={prob}: is only supported for system=ddpm, diffusion on pixels; set it to 0 for "
            f"system={config.system}"
        )
    if "alignment" in config and config.system not in ("ddpm", "latent"):
        raise UserError(
            f"alignment: is only supported for system=ddpm and latent, not {config.system}; remove the section"
        )
    return _BUILDERS[config.system](config, spec, **parts)
