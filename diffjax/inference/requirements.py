"""Capabilities of a run that flags of sampling require. Each rule is one row of a table."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffjax.errors import UserError
from diffjax.models import capabilities
from diffjax.models.base import Model
from diffjax.runs.loading import Run


class Requirement(NamedTuple):
    """A capability that a flag requires, and its name in the error message."""

    is_met: Callable[[Model], bool]
    text: str


DIFFUSION = Requirement(capabilities.is_diffusion, "a diffusion model")
DIFFUSION_OR_PIPELINE = Requirement(capabilities.is_diffusion_or_pipeline, "a diffusion model or a pipeline")
IN_STEPS = Requirement(capabilities.samples_in_steps, "a diffusion model, a pipeline or a masked prior")
TEXT = Requirement(capabilities.is_text_conditioned, "a text-conditioned model")
NEGATIVE_TEXT = Requirement(
    capabilities.takes_negative_prompts, "a diffusion model or pipeline with classifier-free guidance by captions"
)
UNCLIP = Requirement(capabilities.manipulates_images, "an unCLIP pipeline")
NO_TEXT = Requirement(
    lambda model: not capabilities.is_text_conditioned(model) or capabilities.is_upsampling_stage(model),
    "a model that is not text-conditioned; use --prompt instead",
)

GUIDANCE_FLAGS: Mapping[str, Requirement] = {
    "sampler": IN_STEPS,
    "classifier": DIFFUSION,
    "weak": DIFFUSION,
}
SAMPLE_FLAGS: Mapping[str, Requirement] = {
    "measure": DIFFUSION,
    "image": DIFFUSION_OR_PIPELINE,
    "initial_image": Requirement(capabilities.is_code_prior, "a prior over codes"),
    "interpolate": DIFFUSION_OR_PIPELINE,
    "components": UNCLIP,
    "base_prompt": UNCLIP,
    "invert": UNCLIP,
    "prompt": TEXT,
    "prompts": TEXT,
    "negative_prompt": NEGATIVE_TEXT,
    "best_of": TEXT,
    "clip": TEXT,
    "label": NO_TEXT,
}


def check_capabilities(flags: Mapping[str, Any], trained: Run, table: Mapping[str, Requirement]) -> None:
    """Raises UserError for a flag whose requirement the run does not meet.

    Args:
      flags: values of flags by name; None, False or absent: not set.
      table: requirements by name of the flag.
    """
    for name, requirement in table.items():
        if flags.get(name) is not None and flags[name] is not False and not requirement.is_met(trained.system):
            raise UserError(f"--{name}: requires {requirement.text} (this run: system={trained.config.system})")


def check_samples_images(trained: Run) -> None:
    """Raises UserError for a run whose samples are embeddings."""
    if capabilities.outputs_embeddings(trained.system):
        raise UserError(f"--workdir={trained.workdir.name}: outputs embeddings, not images; sample the full pipeline")


def check_stage_image(trained: Run) -> None:
    """Raises UserError for a stage that is conditioned on an image, when there is no image."""
    if capabilities.is_upsampling_stage(trained.system):
        raise UserError(
            f"{trained.workdir.name}: this stage is conditioned on an image; pass --image=FILE, or sample the full "
            "pipeline"
        )
