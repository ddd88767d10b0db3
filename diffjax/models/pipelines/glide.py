"""GLIDE: a base model conditioned on captions, and upsamplers. Without captions it is a cascade.

References:
  Nichol et al. 2021, "GLIDE: Towards photorealistic image generation and editing with text-guided diffusion models".
  Ho et al. 2021, "Cascaded diffusion models for high fidelity image generation".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from diffjax.diffusion.random import fold_in_each
from diffjax.errors import UserError
from diffjax.models.base import TrainedStage
from diffjax.models.diffusion.guided import GuidedModel, guided
from diffjax.models.observation import Observer
from diffjax.models.pipelines.pipeline import (
    FIRST_STAGE_FOLD,
    Pipeline,
    frozen_variables,
    missing_stage_error,
    present,
    shared_text,
    upsampled_size,
)
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.typing import Images, ImageSpec, PRNGKeys, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glide(Pipeline):
    """The pipeline of GLIDE.

    Attributes:
      clip_guided_base: the base stage, guided by a CLIP of noised images (section 2.4); None: there is no such CLIP.
    """

    clip_guided_base: GuidedModel | None = None

    stage_names = ("base", "upsampler", "upsampler_2")
    main_stage = "base"

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        """Makes settings, with CLIP guidance as a static option, as its gradient costs more than all else."""
        settings = super().make_settings(sampler_config, capacity, **overrides)
        scales = {name: float(stage["clip_scale"]) for name, stage in settings.stages.items()}
        for name, scale in scales.items():
            if name != "base" and scale != 0:
                raise UserError(f"clip_scale={name}:{scale:g}: noised_clip only guides base; leave out {name}:")
        if scales["base"] and self.clip_guided_base is None:
            raise missing_stage_error("system=glide with clip_scale", "noised_clip", "noised_clip")
        return dataclasses.replace(settings, choices=(("clip_guidance", bool(scales["base"])),))

    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Images:
        frozen, base_keys = variables["frozen"], fold_in_each(keys, FIRST_STAGE_FOLD)
        if settings["clip_guidance"] and self.clip_guided_base is not None:
            base_variables = {"model": frozen["base"], "noised_clip": frozen["noised_clip"]}
            base_observer = observer and observer.of_stage("base")
            image = self.clip_guided_base.sample(
                base_variables, base_keys, conditions, settings.stages["base"], base_observer
            )
        else:
            image = self.sample_stage("base", variables, base_keys, conditions, settings, observer)
        return self.upsample(variables, keys, conditions, image, settings, observer)


def build(
    config: ConfigDict,
    spec: ImageSpec,
    base: TrainedStage | None = None,
    upsampler: TrainedStage | None = None,
    upsampler_2: TrainedStage | None = None,
    noised_clip: TrainedStage | None = None,
) -> Glide:
    """Builds the pipeline of trained stages.

    Raises:
      UserError: a missing stage, or stages that do not fit.
    """
    if base is None:
        raise missing_stage_error("system=glide", "base", "glide_base")
    stages = present(base=base, upsampler=upsampler, upsampler_2=upsampler_2)
    parts = stages | present(noised_clip=noised_clip)
    output_size = upsampled_size(stages, base.model.output_size)
    if noised_clip:
        _check_guidance(base.model, noised_clip.model)
    return Glide(
        stages=stages,
        clip_guided_base=guided(base.model, noised_clip=noised_clip.model) if noised_clip else None,
        classes=base.model.classes,
        text=shared_text({name: part.model for name, part in parts.items()}),
        frozen=frozen_variables(parts),
        output_size=output_size,
    )


def _check_guidance(base: Any, noised_clip: Any) -> None:
    """Raises UserError for a CLIP of images with another noise schedule or size than those of `base`."""
    if noised_clip.noise_schedule is None:
        raise UserError("noised_clip: was trained on clean images; train one with configs/noised_clip.py")
    if noised_clip.output_size != base.output_size:
        raise UserError(
            f"noised_clip: is for images of {noised_clip.output_size}x{noised_clip.output_size}, and base samples "
            f"{base.output_size}x{base.output_size}; train them with one size"
        )
    clip_noise, base_noise = (
        [model.noise_schedule(t) for t in np.linspace(1, model.noise_schedule.timesteps, 5)]
        for model in (noised_clip, base)
    )
    if not np.allclose(clip_noise, base_noise):
        raise UserError("noised_clip: has another noise schedule than base; train them with one section `diffusion`")
