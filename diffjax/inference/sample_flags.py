"""Flags of `sample`, and which of them require or exclude one another: one row of a table per rule."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffjax.errors import UserError
from diffjax.inference.requirements import SAMPLE_FLAGS, check_capabilities, check_stage_image
from diffjax.models import capabilities
from diffjax.runs.loading import Run

# Flags that each flag of `sample` requires.
_REQUIRED_FLAGS: Mapping[str, tuple[str, ...]] = {
    "strength": ("image",),
    "mask": ("image",),
    "keep_fraction": ("initial_image",),
    "components": ("image",),
    "base_prompt": ("image", "prompt", "interpolate"),
    "invert": ("image",),
    "clip": ("best_of",),
    "measure": ("image",),
    "measure_noise": ("measure",),
    "inverse": ("measure",),
}
# Flags that each flag of `sample` excludes.
_EXCLUDED_FLAGS: Mapping[str, tuple[str, ...]] = {
    "interpolate": ("best_of", "mask", "strength", "resample_steps"),
    "mask": ("strength", "components", "base_prompt", "invert"),
    "measure": ("strength", "resample_steps", "interpolate", "initial_image", "components", "base_prompt", "invert"),
    "strength": ("resample_steps", "components", "base_prompt", "invert"),
}
# Flags excluded as well when samples are variations of --image.
_EXCLUDED_FROM_VARIATIONS: Mapping[str, tuple[str, ...]] = {
    "image": ("best_of", "prompts", "negative_prompt", "clip"),
    "components": ("base_prompt", "interpolate", "invert", "prompt"),
    "base_prompt": ("invert", "resample_steps"),
    "interpolate": ("invert", "resample_steps"),
    "invert": ("resample_steps",),
}


@dataclasses.dataclass(frozen=True)
class SampleFlags:
    """Values of the flags of `launch.py sample`. Each flag is an attribute; one without a value is None.

    Attributes:
      values: by name. Integers: "num", "seed", "batch_size" and "label", which may be one integer per image.
      given_flags: names of the flags that a command line sets.
    """

    values: Mapping[str, Any]
    given_flags: frozenset[str] = frozenset()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.values.get(name)


def is_set(flags: SampleFlags, name: str) -> bool:
    """Returns whether the command line sets a flag without a default."""
    value = flags.values.get(name)
    return value is not None and value is not False


def is_variation(flags: SampleFlags, trained: Run) -> bool:
    """Returns whether samples are variations of --image: conditioned on it instead of on a prompt."""
    is_edit = flags.mask or flags.measure or flags.strength is not None
    return bool(flags.image) and not is_edit and capabilities.reconditions_on_image(trained.system)


def check_sample_flags(flags: SampleFlags, trained: Run) -> None:
    """Raises UserError for flags of `sample` that the run does not support, or that exclude one another."""
    model = trained.system
    check_capabilities(flags.values, trained, SAMPLE_FLAGS)
    _check_required_flags(flags)
    _check_excluded_flags(flags, _EXCLUDED_FLAGS)
    if not flags.image:
        check_stage_image(trained)
    interpolates_images = capabilities.manipulates_images(model) and flags.image
    if flags.interpolate and capabilities.is_pipeline(model) and not interpolates_images:
        raise UserError("--interpolate: requires --image=A,B and an unCLIP pipeline, if the run is a pipeline")
    if is_variation(flags, trained):
        _check_variation(flags, trained)
    elif flags.measure:
        _check_measure(flags, trained)
    elif flags.image and not (flags.mask or flags.interpolate or flags.strength is not None):
        raise UserError(
            "--image: requires --strength (to edit it), --mask (to inpaint it), --measure (to restore it) or "
            "--interpolate; add one"
        )


def _check_required_flags(flags: SampleFlags) -> None:
    for name, required in _REQUIRED_FLAGS.items():
        missing = [other for other in required if not is_set(flags, other)]
        if is_set(flags, name) and missing:
            raise UserError(f"--{name}: requires --{' and --'.join(missing)}; add {'them' if missing[1:] else 'it'}")


def _check_excluded_flags(flags: SampleFlags, table: Mapping[str, tuple[str, ...]]) -> None:
    for name, excluded in table.items():
        for other in excluded:
            if is_set(flags, name) and is_set(flags, other):
                raise UserError(f"--{other}: is not supported with --{name}; remove one of them")


def _check_measure(flags: SampleFlags, trained: Run) -> None:
    """Raises UserError for a measurement that --mask does not fit, or of a stage that sees the image."""
    if flags.mask and not flags.measure.startswith("mask"):
        raise UserError(f"--mask: is not supported with --measure={flags.measure}; remove it, or pass --measure=mask")
    if capabilities.is_upsampling_stage(trained.system):
        raise UserError("--measure: is not supported for a stage that is conditioned on the image; remove it")


def _check_variation(flags: SampleFlags, trained: Run) -> None:
    """Raises UserError for flags that have no effect when samples are variations of --image."""
    _check_excluded_flags(flags, _EXCLUDED_FROM_VARIATIONS)
    if capabilities.manipulates_images(trained.system):
        for name in ("prior", "candidates"):
            if is_set(flags, name):
                raise UserError(f"--{name}: is not supported with --image, which replaces the prior; remove it")
    elif flags.interpolate:
        raise UserError("--interpolate: is not supported for a stage conditioned on --image; remove it")
    if flags.interpolate and flags.prompt and not flags.base_prompt:
        raise UserError("--prompt: has no effect with --interpolate between two images; remove it")
    if flags.label is not None and not trained.system.classes:
        raise UserError(f"--label={flags.label}: {trained.workdir.name} was trained without labels; remove it")
