"""Flags that require a capability of the run, or another flag; and flags that exclude one another.

Each rule is one row of a table.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from diffjax.cli.flags import Arguments
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
TEXT = Requirement(capabilities.is_text_conditioned, "a text-conditioned model")
UNCLIP = Requirement(capabilities.manipulates_images, "an unCLIP pipeline")
NO_TEXT = Requirement(
    lambda model: not capabilities.is_text_conditioned(model) or capabilities.is_upsampling_stage(model),
    "a model that is not text-conditioned; use --prompt instead",
)

GUIDANCE_FLAGS: Mapping[str, Requirement] = {
    "sampler": DIFFUSION_OR_PIPELINE,
    "classifier": DIFFUSION,
    "weak": DIFFUSION,
}
SAMPLE_FLAGS: Mapping[str, Requirement] = {
    "image": DIFFUSION_OR_PIPELINE,
    "interpolate": DIFFUSION_OR_PIPELINE,
    "components": UNCLIP,
    "base_prompt": UNCLIP,
    "invert": UNCLIP,
    "prompt": TEXT,
    "prompts": TEXT,
    "best_of": TEXT,
    "clip": TEXT,
    "label": NO_TEXT,
}

# Flags that each flag of `sample` requires.
_REQUIRED_FLAGS: Mapping[str, tuple[str, ...]] = {
    "strength": ("image",),
    "mask": ("image",),
    "keep_fraction": ("initial_image",),
    "components": ("image",),
    "base_prompt": ("image", "prompt", "interpolate"),
    "invert": ("image",),
    "clip": ("best_of",),
}
# Flags that each flag of `sample` excludes.
_EXCLUDED_FLAGS: Mapping[str, tuple[str, ...]] = {
    "interpolate": ("best_of", "mask", "strength", "resample_steps"),
    "mask": ("strength", "components", "base_prompt", "invert"),
    "strength": ("resample_steps", "components", "base_prompt", "invert"),
}
# Flags excluded as well when samples are variations of --image.
_EXCLUDED_FROM_VARIATIONS: Mapping[str, tuple[str, ...]] = {
    "image": ("best_of", "prompts", "clip"),
    "components": ("base_prompt", "interpolate", "invert", "prompt"),
    "base_prompt": ("invert", "resample_steps"),
    "interpolate": ("invert", "resample_steps"),
    "invert": ("resample_steps",),
}


def is_set(arguments: Arguments, name: str) -> bool:
    """Returns whether the command line sets a flag without a default."""
    value = getattr(arguments, name)
    return value is not None and value is not False


def check_capabilities(arguments: Arguments, trained: Run, table: Mapping[str, Requirement]) -> None:
    """Raises UserError for a flag whose requirement the run does not meet."""
    for name, requirement in table.items():
        if is_set(arguments, name) and not requirement.is_met(trained.system):
            raise UserError(f"--{name}: requires {requirement.text} (this run: system={trained.config.system})")


def is_variation(arguments: Arguments, trained: Run) -> bool:
    """Returns whether samples are variations of --image: conditioned on it instead of on a prompt."""
    is_edit = arguments.mask or arguments.strength is not None
    return bool(arguments.image) and not is_edit and capabilities.reconditions_on_image(trained.system)


def check_sample_flags(arguments: Arguments, trained: Run) -> None:
    """Raises UserError for flags of `sample` that the run does not support, or that exclude one another."""
    model, system = trained.system, trained.config.system
    check_capabilities(arguments, trained, SAMPLE_FLAGS)
    if arguments.initial_image and system != "prior":
        raise UserError(f"--initial_image: requires an autoregressive prior, system=prior (this run: system={system})")
    _check_required_flags(arguments)
    _check_excluded_flags(arguments, _EXCLUDED_FLAGS)
    if capabilities.is_upsampling_stage(model) and not arguments.image:
        raise UserError(
            f"{trained.workdir.path}: this stage is conditioned on an image; pass --image=FILE, or sample the full "
            "pipeline"
        )
    interpolates_images = capabilities.manipulates_images(model) and arguments.image
    if arguments.interpolate and capabilities.is_pipeline(model) and not interpolates_images:
        raise UserError("--interpolate: requires --image=A,B and an unCLIP pipeline, if the run is a pipeline")
    if is_variation(arguments, trained):
        _check_variation(arguments, trained)
    elif arguments.image and not (arguments.mask or arguments.interpolate or arguments.strength is not None):
        raise UserError("--image: requires --strength (to edit it), --mask (to inpaint it) or --interpolate; add one")


def _check_required_flags(arguments: Arguments) -> None:
    for name, required in _REQUIRED_FLAGS.items():
        missing = [other for other in required if not is_set(arguments, other)]
        if is_set(arguments, name) and missing:
            raise UserError(f"--{name}: requires --{' and --'.join(missing)}; add {'them' if missing[1:] else 'it'}")


def _check_excluded_flags(arguments: Arguments, table: Mapping[str, tuple[str, ...]]) -> None:
    for name, excluded in table.items():
        for other in excluded:
            if is_set(arguments, name) and is_set(arguments, other):
                raise UserError(f"--{other}: is not supported with --{name}; remove one of them")


def _check_variation(arguments: Arguments, trained: Run) -> None:
    """Raises UserError for flags that have no effect when samples are variations of --image."""
    _check_excluded_flags(arguments, _EXCLUDED_FROM_VARIATIONS)
    if capabilities.manipulates_images(trained.system):
        for name in ("prior", "candidates"):
            if is_set(arguments, name):
                raise UserError(f"--{name}: is not supported with --image, which replaces the prior; remove it")
    elif arguments.interpolate:
        raise UserError("--interpolate: is not supported for a stage conditioned on --image; remove it")
    if arguments.interpolate and arguments.prompt and not arguments.base_prompt:
        raise UserError("--prompt: has no effect with --interpolate between two images; remove it")
    if arguments.label is not None and not trained.system.classes:
        raise UserError(f"--label={arguments.label}: {trained.workdir.path} was trained without labels; remove it")
