"""Models that guide the samples of a run: a classifier of noised images, or a weaker model."""

from collections.abc import Mapping
from typing import Any, cast

from diffjax.errors import UserError
from diffjax.inference.requirements import GUIDANCE_FLAGS, check_capabilities
from diffjax.models.base import GenerativeModel
from diffjax.models.capabilities import (
    is_autoencoder,
    is_classifier,
    is_diffusion,
    is_generative,
    is_text_conditioned,
)
from diffjax.models.diffusion.guided import guided
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.runs.loading import Run, load
from diffjax.typing import Variables

_PROCESS_FIELDS = ("schedule", "timesteps", "continuous", "zero_terminal_snr")  # those that guidance models share


def attach_guidance_models(trained: Run, flags: Mapping[str, Any]) -> tuple[GenerativeModel, Variables]:
    """Returns the run's model guided by --classifier and --weak, and the variables of all.

    Args:
      flags: values of flags by name; None or absent: not set.

    Raises:
      UserError: the run does not sample, or a guidance model does not fit it.
    """
    if not is_generative(trained.system):
        advice = "train a prior on its tokens (configs/prior_transformer.py)" if is_autoencoder(trained.system) else ""
        raise UserError(
            f"--workdir={trained.workdir.name}: system={trained.config.system} does not sample images"
            + f"; {advice}" * bool(advice)
        )
    check_guidance_flags(trained, flags)
    guides = {name: load(flags[name]) for name in ("classifier", "weak") if flags.get(name)}
    for name, guide in guides.items():
        _check_guide(name, guide, trained)
    if not guides:
        return trained.system, trained.variables
    models: dict[str, Any] = {name: guide.system for name, guide in guides.items()}
    model = guided(cast(DiffusionModel, trained.system), **models)
    return model, {"model": trained.variables} | {name: guide.variables for name, guide in guides.items()}


def check_guidance_flags(trained: Run, flags: Mapping[str, Any]) -> None:
    """Raises UserError for flags of guidance that the run does not support, or that require another flag."""
    check_capabilities(flags, trained, GUIDANCE_FLAGS)
    if flags.get("classifier") and is_text_conditioned(trained.system):
        raise UserError("--classifier: is not supported for text-conditioned runs; remove it")
    for name in ("classifier", "weak"):
        if flags.get(f"{name}_scale") is not None and not flags.get(name):
            raise UserError(f"--{name}_scale: requires --{name}=RUN; add it")
    if flags.get("clip_scale") is not None and trained.config.system != "glide":
        raise UserError(
            "--clip_scale: requires a pipeline with a noised_clip stage, system=glide "
            f"(this run: system={trained.config.system})"
        )


def _check_guide(name: str, guide: Run, trained: Run) -> None:
    """Raises UserError if a model cannot guide the run: wrong kind of model, other images or another process."""
    flag = f"--{name}={guide.workdir.name}"
    kind, fits = ("classifier", is_classifier) if name == "classifier" else ("diffusion model", is_diffusion)
    if not fits(guide.system):
        raise UserError(f"{flag}: must be a run of a {kind}, not of system={guide.config.system}")
    if guide.spec != trained.spec:
        raise UserError(f"{flag}: was trained on other images, {guide.spec}; train it on {trained.spec}")
    for field in _PROCESS_FIELDS:
        theirs, ours = guide.config.diffusion[field], trained.config.diffusion[field]
        if theirs != ours:
            raise UserError(f"{flag}: diffusion.{field}={theirs} must be that of the run, {ours}; train it with that")
