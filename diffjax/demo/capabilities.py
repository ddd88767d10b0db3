"""Capabilities of a run for the demo's page: its settings with their defaults, choices and edits."""

import dataclasses
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import jax

from diffjax.diffusion import clipping, masking_schedules, samplers, time_grids, unmasking
from diffjax.errors import UserError
from diffjax.inference.overrides import SETTINGS
from diffjax.inference.reranking import check_reranker
from diffjax.inference.sample_requests import RunSampler
from diffjax.models.base import GenerativeModel
from diffjax.models.capabilities import (
    is_code_prior,
    is_diffusion,
    is_masked_prior,
    is_pipeline,
    is_text_conditioned,
    is_upsampling_stage,
    manipulates_images,
    takes_negative_prompts,
)
from diffjax.models.diffusion.data_space import PixelSpace
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.diffusion.process import INJECTED_ARGUMENTS
from diffjax.registry import choices, lookup
from diffjax.runs.checkpoint_files import list_steps
from diffjax.runs.datasets import dataset_info

# Edits of images, and the flags of `sample` that each requires.
EDITS: Mapping[str, tuple[str, ...]] = {
    "image_to_image": ("image", "strength"),
    "inpaint": ("image", "mask"),
    "variations": ("image",),
    "interpolate_seeds": ("interpolate",),
    "interpolate_images": ("image", "interpolate"),
    "text_diff": ("image", "base_prompt", "prompt", "interpolate"),
    "complete": ("initial_image",),
}
_ORDER = ("prior", "ar_prior", "base", "decoder", "upsampler", "upsampler_2")  # of sampling
_PRIORS = {"diffusion": "prior", "ar": "ar_prior", "none": ""}  # stage of each choice of unCLIP's --prior


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """Capabilities and default settings of a run.

    Attributes:
      name: name of the run in the engine.
      workdir: folder of the run.
      system: `system` of the config, such as "ddpm" or "glide".
      num_parameters: number of trained parameters, of all stages of a pipeline.
      step: training step of the checkpoint; 0 for pipelines and published weights.
      classes: number of classes; 0: none.
      class_names: names of the classes; () if the data set does not name them.
      text: whether the run is text-conditioned (flag "prompt").
      negative_prompt: whether guidance can move away from a caption (flag "negative_prompt").
      image_size: height and width of the images, pixels.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      settings: the run's default by flag, for the sampling settings that it supports, such as "steps".
      stages: the same for each stage of a pipeline, in the order of sampling; {} for other models. A flag that sets
        them has the form "base:50,upsampler:15".
      choices: names by flag, for the settings whose value is a name: "sampler", "grid", "threshold", "prior". A value
        in `settings` can have options, such as edm(churn=40).
      edits: names in EDITS.
      best_of: whether the run has a CLIP to rank samples by (flag "best_of").
      trajectory: whether `Engine.trajectory` is supported, and samples have previews.
      checkpoints: training steps of all checkpoints, ascending (flag "checkpoint").
      number: range of the number that the run is conditioned on (flag "number"); None: it is not.
    """

    name: str
    workdir: str
    system: str
    num_parameters: int
    step: int
    classes: int
    class_names: Sequence[str]
    text: bool
    negative_prompt: bool
    image_size: int
    channels: int
    settings: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    choices: Mapping[str, Sequence[str]]
    edits: frozenset[str]
    best_of: bool
    trajectory: bool
    checkpoints: Sequence[int]
    number: tuple[float, float] | None


def capabilities_of(name: str, sampler: RunSampler) -> Capabilities:
    """Returns the capabilities of a run.

    Args:
      name: name of the run.
      sampler: the run without guidance by other models.
    """
    trained, model = sampler.trained, sampler.model
    section, stages = trained.config.sampler.to_dict(), {}
    if is_pipeline(model):
        settings, sections = model.read_settings(section, {})
        for stage in (stage for stage in _ORDER if stage in model.stages):
            part = model.stages[stage]
            stages[stage] = _defaults(part.model, {**part.sampler_config, **sections.get(stage, {})})
        if getattr(model, "clip_guided_base", None) is not None:
            stages["base"]["clip_scale"] = sections.get("base", {}).get("clip_scale", 0.0)
    else:
        settings = _defaults(model, section)
    return Capabilities(
        name=name,
        workdir=str(trained.workdir.path),
        system=trained.config.system,
        num_parameters=_num_parameters(model, sampler.variables),
        step=trained.step,
        classes=0 if is_text_conditioned(model) else model.classes,
        class_names=dataset_info(trained.config).class_names,
        text=is_text_conditioned(model),
        negative_prompt=takes_negative_prompts(model),
        image_size=model.output_size,
        channels=trained.spec.channels,
        settings=settings,
        stages=stages,
        choices=_choices(model),
        edits=_edits(model),
        best_of=is_text_conditioned(model) and _has_clip(sampler),
        trajectory=bool(image_stages(model)),
        checkpoints=list_steps(trained.workdir.checkpoints),
        number=_number_range(model),
    )


def image_stages(model: GenerativeModel) -> list[str]:
    """Returns the stages that denoise images or latents of them, in the order of sampling; [""] for a single model."""
    if is_pipeline(model):
        return [name for name in _ORDER if name in model.stages and image_stages(model.stages[name].model)]
    model = getattr(model, "model", model)  # of a model with guidance
    return [""] if is_diffusion(model) and not model.outputs_embeddings else []


def _num_parameters(model: GenerativeModel, variables: Mapping[str, Any]) -> int:
    parts = [variables["frozen"][name] for name in model.stages] if is_pipeline(model) else [variables]
    return sum(leaf.size for part in parts for leaf in jax.tree.leaves(part["params"]))


def _defaults(model: Any, section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a single model by flag, with the values of a config's `sampler` section."""
    number = _number_range(model)
    middle = {"number": sum(number) / 2} if number and section.get("number") is None else {}
    settings = model.make_settings(section, **middle)
    values = {name: value.item() for name, value in (settings.scalars | settings.sampler_options).items()}
    values |= dict(settings.choices)
    if not is_diffusion(model):
        supported = values.keys() - (set() if getattr(model, "condition_dropout", 0) else {"guidance"})
        return {name: values[name] for name in SETTINGS if name in supported}
    values["grid"] = section.get("grid", "trailing")
    sampler = lookup("sampler", samplers, section["name"], injected=INJECTED_ARGUMENTS)
    if sampler.options.keys() - {"eta", "sigma_hat"}:  # options without a flag, such as edm(churn=40)
        values["sampler"] = section["name"]
    if values.get("sigma_hat"):
        values["eta"] = "hat"
    others = {"eta"} & sampler.options.keys() if values["sampler"] == section["name"] else set()
    others |= {"classifier_scale", "weak_scale", "clip_scale"}  # of models that guide
    others |= {"temperature", "brownian", "cache_interval", "cache_threshold", "cache_branch_id"}  # flags only
    if not model.conditions.supports_guidance:
        others |= {name for name in SETTINGS if name.startswith("guidance")}
    if "low_res_image" not in model.required_inputs:
        others.add("augmentation")
    return {name: values[name] for name in SETTINGS if name in values.keys() - others}


def _number_range(model: Any) -> tuple[float, float] | None:
    number = model.conditions.number if isinstance(model, DiffusionModel) else None
    return (number.low, number.high) if number else None


def _choices(model: GenerativeModel) -> dict[str, list[str]]:
    stages = [stage.model for stage in model.stages.values()] if is_pipeline(model) else [model]
    names: dict[str, list[str]] = {}
    if any(map(is_diffusion, stages)):
        in_pixels = any(isinstance(getattr(stage, "data_space", None), PixelSpace) for stage in stages)
        # Without grids whose times are listed, such as sections(3,2).
        kinds = {name: signature(grid).parameters.values() for name, grid in choices(time_grids).items()}
        grids = [name for name, kind in kinds.items() if all(p.kind is not p.VAR_POSITIONAL for p in kind)]
        thresholds = list(choices(clipping)) if in_pixels else ["none"]
        names |= {"sampler": list(choices(samplers)), "grid": grids, "threshold": thresholds}
    if is_masked_prior(model):
        names |= {"sampler": list(choices(unmasking)), "schedule": list(choices(masking_schedules))}
    if is_pipeline(model) and "prior" in model.option_defaults:
        names["prior"] = [prior for prior, stage in _PRIORS.items() if not stage or stage in model.stages]
    return names


def _edits(model: GenerativeModel) -> frozenset[str]:
    names = set()
    if is_diffusion(model) or is_pipeline(model):
        names |= {"image_to_image", "inpaint"}
    if is_upsampling_stage(model):
        names.add("variations")
    elif is_diffusion(model):
        names |= {"interpolate_seeds", "interpolate_images"}
    if manipulates_images(model):
        names |= {"variations", "interpolate_images", "text_diff"}
    if is_code_prior(model) and len(model.codec_spec.grids) == 1:
        names.add("complete")
    return frozenset(names)


def _has_clip(sampler: RunSampler) -> bool:
    try:
        check_reranker(sampler.trained)
    except UserError:
        return False
    return True
