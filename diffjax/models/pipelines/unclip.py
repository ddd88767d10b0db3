"""unCLIP (DALL-E 2): a prior samples the CLIP embedding of an image, a decoder the image, and upsamplers follow.

References:
  Ramesh et al. 2022, "Hierarchical text-conditional image generation with CLIP latents".
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax import numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from diffjax.diffusion.random import fold_in_each, split_each
from diffjax.errors import UserError, unknown
from diffjax.models.base import ContrastiveModel, ImageManipulation, TrainedStage, abstract_value
from diffjax.models.diffusion.data_space import StandardizedSpace
from diffjax.models.observation import Observer
from diffjax.models.pipelines import pca as components
from diffjax.models.pipelines.pipeline import (
    CAPTIONS,
    FIRST_STAGE_FOLD,
    Pipeline,
    frozen_variables,
    missing_stage_error,
    present,
    select,
    shared_text,
    upsampled_size,
)
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.nn.layers import unit_norm
from diffjax.typing import Clip, Embeddings, Images, ImageSpec, PRNGKeys, Tokens, Variables

_PRIORS = {"diffusion": "prior", "ar": "ar_prior", "none": None}  # stage by the setting `prior`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unclip(Pipeline, ImageManipulation):
    """The pipeline of unCLIP.

    Its own settings: `prior` is "diffusion", "ar" (over codes of principal components) or "none" (the caption's
    embedding is decoded, section 5.1). `candidates` is the number of embeddings that the prior samples; the one most
    similar to the caption's is decoded (section 2.2).

    Attributes:
      contrastive: the CLIP.
      has_pca: whether the pipeline has principal components of the CLIP's embeddings.
      unit_length: whether the decoder's embeddings are of unit length, or as the CLIP's last layers output them.
    """

    contrastive: ContrastiveModel
    has_pca: bool = False
    unit_length: bool = True

    stage_names = ("decoder", "prior", "ar_prior", "upsampler", "upsampler_2")
    main_stage = "decoder"
    option_defaults = {"prior": "diffusion", "candidates": 2}

    def is_used(self, stage: str, options: Mapping[str, Any]) -> bool:
        return stage not in _PRIORS.values() or stage == _PRIORS[options["prior"]]

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        prior = overrides.get("prior", sampler_config.get("prior", self.option_defaults["prior"]))
        if prior not in _PRIORS:
            raise unknown("prior", prior, _PRIORS)
        stage = _PRIORS[prior]
        if stage is not None and stage not in self.stages:
            raise missing_stage_error(f"system=unclip with prior={prior}", stage, f"unclip_{stage}")
        settings = super().make_settings(sampler_config, capacity, **overrides)
        if settings["candidates"] < 1:
            raise UserError(f"candidates={settings['candidates']}: must be at least 1; raise it")
        return settings

    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Images:
        """Samples images. With "image_embedding" or "original" in `conditions` the prior is not used."""
        prior_keys, decoder_keys = split_each(fold_in_each(keys, FIRST_STAGE_FOLD))
        decoder_conditions = select(conditions, *CAPTIONS, "latent", "image", "mask")
        decoder_conditions["image_embedding"] = self._image_embedding(
            variables, prior_keys, conditions, settings, observer
        )
        image = self.sample_stage("decoder", variables, decoder_keys, decoder_conditions, settings, observer)
        return self.upsample(variables, keys, conditions, image, settings, observer)

    def _image_embedding(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None,
    ) -> Embeddings:
        """Returns the embedding to decode."""
        if "image_embedding" in conditions:
            return conditions["image_embedding"]
        if "original" in conditions:
            return self.embed(variables, conditions["original"])
        text_embeddings = self.embed_texts(variables, conditions["tokens"])
        stage = _PRIORS[settings["prior"]]
        if stage is None:
            return text_embeddings
        prior_conditions = select(conditions, *CAPTIONS)
        candidates = jnp.stack(
            [
                self.sample_stage(stage, variables, fold_in_each(keys, k), prior_conditions, settings, observer)
                for k in range(settings["candidates"])
            ],
            axis=1,
        )
        directions = candidates
        if isinstance(getattr(self.stages[stage].model, "data_space", None), StandardizedSpace):
            directions = unit_norm(candidates, 1e-8)
            candidates = directions if self.unit_length else candidates
        best = jnp.argmax(jnp.einsum("bkd,bd->bk", directions, text_embeddings), axis=1)
        return jnp.take_along_axis(candidates, best[:, None, None], axis=1)[:, 0]

    def _clip(self, variables: Variables) -> Clip:
        return self.contrastive.clip(variables["frozen"]["clip"])

    def embed(self, variables: Variables, images: Images) -> Embeddings:
        clip = self._clip(variables)
        embed = clip.embed_images if self.unit_length else clip.project_images
        assert embed is not None
        return embed(images)

    def embed_texts(self, variables: Variables, tokens: Tokens) -> Embeddings:
        clip = self._clip(variables)
        embed = clip.embed_texts if self.unit_length else clip.project_texts
        assert embed is not None
        return embed(tokens)

    def invert(
        self, variables: Variables, images: Images, conditions: Mapping[str, Array], settings: SamplingSettings
    ) -> Array:
        decoder = self.stages["decoder"].model.bind(variables["frozen"]["decoder"], conditions)
        return decoder.invert(images, settings.stages["decoder"])

    @property
    def project(self) -> Callable[[Variables, Embeddings, Array], Embeddings] | None:
        return _project if self.has_pca else None


def build(
    config: ConfigDict,
    spec: ImageSpec,
    clip: tuple[ContrastiveModel, Variables] | None = None,
    decoder: TrainedStage | None = None,
    prior: TrainedStage | None = None,
    ar_prior: TrainedStage | None = None,
    pca: TrainedStage | None = None,
    upsampler: TrainedStage | None = None,
    upsampler_2: TrainedStage | None = None,
) -> Unclip:
    """Builds the pipeline of trained stages.

    Raises:
      UserError: a missing stage, or stages that do not fit.
    """
    if clip is None:
        raise missing_stage_error("system=unclip", "clip", "clip_shapes")
    if decoder is None:
        raise missing_stage_error("system=unclip", "decoder", "unclip_decoder")
    stages = present(decoder=decoder, prior=prior, ar_prior=ar_prior, upsampler=upsampler, upsampler_2=upsampler_2)
    parts = {"clip": clip, **stages, **present(pca=pca)}
    models = {name: part[0] for name, part in parts.items()}
    output_size = upsampled_size(stages, decoder.model.output_size)
    _check_embeddings(models, abstract_value(clip[0].clip, clip[1]).dimensions)
    return Unclip(
        stages=stages,
        contrastive=clip[0],
        has_pca=pca is not None,
        unit_length=decoder.model.conditions.each["image_embedding"].unit_length,
        text=shared_text(models),
        frozen=frozen_variables(parts),
        output_size=output_size,
    )


def _project(variables: Variables, embeddings: Embeddings, count: Array) -> Embeddings:
    return components.project(variables["frozen"]["pca"]["statistics"], embeddings, count)


def _check_embeddings(models: Mapping[str, Any], dimensions: int) -> None:
    """Raises UserError for a stage with embeddings of another dimension than the CLIP's."""
    if "image_embedding" not in models["decoder"].required_inputs:
        raise UserError(
            "decoder: must be conditioned on CLIP embeddings; its config must have conditions.image_embedding"
        )
    sizes = {"decoder": models["decoder"].required_inputs["image_embedding"]}
    sizes |= {name: models[name].output_size for name in ("prior", "ar_prior", "pca") if name in models}
    for name, size in sizes.items():
        if size != dimensions:
            raise UserError(
                f"{name}: has embeddings of {size} values, and clip has {dimensions}; train both with one CLIP"
            )
