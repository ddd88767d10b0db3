"""Sampling settings as flags: one value each for `sample`, lists for `sweep`; and the models that guide sampling."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags, entries, number, texts
from diffjax.cli.requirements import GUIDANCE_FLAGS, check_capabilities
from diffjax.diffusion import clipping, samplers, time_grids
from diffjax.errors import UserError, note
from diffjax.models.base import GenerativeModel
from diffjax.models.capabilities import (
    is_autoencoder,
    is_classifier,
    is_diffusion,
    is_generative,
    is_pipeline,
    is_text_conditioned,
)
from diffjax.models.diffusion.guided import guided
from diffjax.models.diffusion.model import DiffusionModel
from diffjax.models.diffusion.process import INJECTED_ARGUMENTS
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.registry import choices, lookup, options
from diffjax.runs.loading import Run, load
from diffjax.typing import Variables

_PROCESS_FIELDS = ("schedule", "timesteps", "continuous", "zero_terminal_snr")  # those that guidance models share


class _Setting(NamedTuple):
    """A flag of a sampling setting, and the settings that the text of its value sets."""

    help: str
    parse: Callable[[str], dict[str, Any]]


def _text(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: text}


def _number(name: str, kind: type[int] | type[float] = float) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: number(text, kind)}


def _eta(text: str) -> dict[str, Any]:
    return {"eta": 1.0, "sigma_hat": True} if text == "hat" else {"eta": number(text), "sigma_hat": False}


def _guidance(text: str) -> dict[str, Any]:
    return {"guidance": 1.0 + number(text[1:]) if text.startswith("w") else number(text)}


SETTINGS = {
    "sampler": _Setting(f"{' | '.join(choices(samplers))}, with options as in edm(churn=40)", _text("name")),
    "grid": _Setting(f"time grid: {' | '.join(choices(time_grids))}, with options as in karras(rho=5)", _text("grid")),
    "threshold": _Setting(f"clipping of each x_0 estimate: {' | '.join(choices(clipping))}", _text("threshold")),
    "guidance": _Setting("scale s of classifier-free guidance, 1: unguided; w0.5 means s = 1 + 0.5", _guidance),
    "guidance_rescale": _Setting("weight of rescaling to the unguided contrast, 0 to 1", _number("guidance_rescale")),
    "guidance_low": _Setting("guide only where sigma / alpha is above this", _number("guidance_low")),
    "guidance_high": _Setting("guide only where sigma / alpha is at most this", _number("guidance_high")),
    "classifier_scale": _Setting("scale of --classifier's gradient", _number("classifier_scale")),
    "weak_scale": _Setting("scale of the extrapolation from --weak, 1: unguided", _number("weak_scale")),
    "eta": _Setting("noise of ddim and others: 0 deterministic, 1 ancestral, hat: DDPM's larger variance", _eta),
    "steps": _Setting("number of sampler steps", _number("steps", int)),
    "temperature": _Setting("scale of a prior's logits or a VAE's latents; below 1: likelier", _number("temperature")),
    "top_k": _Setting("sample tokens from the k most likely, 0: from all", _number("top_k", int)),
    "top_p": _Setting("sample tokens from the most likely with this total probability", _number("top_p")),
    "prior": _Setting("unCLIP's prior: diffusion | ar | none (uses the caption's embedding)", _text("prior")),
    "candidates": _Setting("embeddings sampled by unCLIP's prior, of which one is kept", _number("candidates", int)),
    "clip_scale": _Setting("scale of the gradient of GLIDE's CLIP of noised images", _number("clip_scale")),
    "augmentation": _Setting("degradation level of an upsampler's low-resolution image", _number("augmentation")),
    "truncation": _Setting("range of a GAN's latents; lower: more typical images", _number("truncation")),
}


def define_settings(flags: Flags, *, several: bool) -> None:
    """Defines the flags of SETTINGS, and of guidance models; with `several` each setting is a list."""
    for name, setting in SETTINGS.items():
        text = f"{setting.help}; several, separated by commas" if several else setting.help
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)
    for name, text in {
        "classifier": "run of a classifier of noised images, for guidance (configs/classifier_digits.py)",
        "weak": "run of a weaker model of the same data, to move away from (autoguidance)",
    }.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)


def setting_grid(arguments: Arguments) -> list[dict[str, Any]]:
    """Returns all combinations of the flags' values, as overrides of the sampling settings, each once.

    With several samplers, an option that some of them do not take is left out for those.

    Raises:
      UserError: a value cannot be read.
    """
    axes = {name: setting_values(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    for name, axis in axes.items():
        if any(value in axis[:i] for i, value in enumerate(axis)):
            note(f"--{name}={getattr(arguments, name)}: a value is listed twice, and sampled once")
    grid = [dict(itertools.chain(*map(dict.items, cell))) for cell in itertools.product(*axes.values())]
    for cell in grid:
        _check_set_once(cell)
    if len(texts(arguments.sampler or "")) > 1 and all("name" in cell for cell in grid):
        accepted = {name: _sampler_options(name) for name in {cell["name"] for cell in grid}}
        known = set().union(*accepted.values())
        grid = [{k: v for k, v in cell.items() if k not in known - accepted[cell["name"]]} for cell in grid]
    return [cell for i, cell in enumerate(grid) if cell not in grid[:i]]


def _sampler_options(name: str) -> set[str]:
    sampler = lookup("sampler", samplers, name, injected=INJECTED_ARGUMENTS)
    return options(sampler.function) - set(INJECTED_ARGUMENTS)


def single_setting(arguments: Arguments) -> dict[str, Any]:
    """Returns the overrides of the sampling settings, one value per setting or per stage.

    Raises:
      UserError: a setting has several values, or one that cannot be read.
    """
    overrides: dict[str, Any] = {}
    for name in SETTINGS:
        text = getattr(arguments, name) or ""
        parsed = setting_values(arguments, name) if text else []
        keys = [key for value in parsed for key in value]
        if len(set(keys)) < len(keys):
            raise UserError(f"--{name}={text}: must be one value; launch.py sweep takes several")
        for value in parsed:
            overrides |= value
    _check_set_once(overrides)
    return overrides


def _check_set_once(overrides: Mapping[str, Any]) -> None:
    """Raises UserError if a flag sets an option that the value of --sampler sets too, such as ddim(eta=0.5)."""
    for name, value in overrides.items():
        stage, colon, setting = name.rpartition(":")
        if setting != "name":
            continue
        for option in lookup("sampler", samplers, value, injected=INJECTED_ARGUMENTS).options:
            if f"{stage}{colon}{option}" in overrides:
                raise UserError(f"--sampler={value}: {option} is also set by its own flag; set it in one place")


def batch_size(arguments: Arguments, total: int) -> int:
    """Returns the batch size for `total` samples; prints a note if that is not --batch_size."""
    size, devices = min(arguments.batch_size, total), jax.local_device_count()
    if "batch_size" in arguments.given_flags:
        if size < arguments.batch_size:
            note(f"--batch_size={arguments.batch_size}: there are {total} samples, in one batch")
        elif size % devices:
            whole = math.ceil(size / devices) * devices
            note(f"--batch_size={size}: rounded up to {whole}, a multiple of the {devices} devices")
    return size


def attach_guidance_models(arguments: Arguments, trained: Run) -> tuple[GenerativeModel, Variables]:
    """Returns the run's model guided by --classifier and --weak, and the variables of all.

    Raises:
      UserError: the run does not sample, or a guidance model does not fit it.
    """
    if not is_generative(trained.system):
        advice = "train a prior on its tokens (configs/prior_transformer.py)" if is_autoencoder(trained.system) else ""
        raise UserError(
            f"--workdir={trained.workdir.path}: system={trained.config.system} does not sample images"
            + f"; {advice}" * bool(advice)
        )
    check_capabilities(arguments, trained, GUIDANCE_FLAGS)
    if arguments.classifier and is_text_conditioned(trained.system):
        raise UserError("--classifier: is not supported for text-conditioned runs; remove it")
    guides = {name: load(getattr(arguments, name)) for name in ("classifier", "weak") if getattr(arguments, name)}
    for name, guide in guides.items():
        _check_guide(name, guide, trained)
    for name in ("classifier", "weak"):
        if getattr(arguments, f"{name}_scale") is not None and name not in guides:
            raise UserError(f"--{name}_scale: requires --{name}=RUN; add it")
    if arguments.clip_scale is not None and trained.config.system != "glide":
        raise UserError(
            "--clip_scale: requires a pipeline with a noised_clip stage, system=glide "
            f"(this run: system={trained.config.system})"
        )
    if not guides:
        return trained.system, trained.variables
    models: dict[str, Any] = {name: guide.system for name, guide in guides.items()}
    model = guided(cast(DiffusionModel, trained.system), **models)
    return model, {"model": trained.variables} | {name: guide.variables for name, guide in guides.items()}


def _check_guide(name: str, guide: Run, trained: Run) -> None:
    """Raises UserError if a model cannot guide the run: wrong kind of model, other images or another process."""
    flag = f"--{name}={guide.workdir.path}"
    kind, fits = ("classifier", is_classifier) if name == "classifier" else ("diffusion model", is_diffusion)
    if not fits(guide.system):
        raise UserError(f"{flag}: must be a run of a {kind}, not of system={guide.config.system}")
    if guide.spec != trained.spec:
        raise UserError(f"{flag}: was trained on other images, {guide.spec}; train it on {trained.spec}")
    for field in _PROCESS_FIELDS:
        theirs, ours = guide.config.diffusion[field], trained.config.diffusion[field]
        if theirs != ours:
            raise UserError(f"{flag}: diffusion.{field}={theirs} must be that of the run, {ours}; train it with that")


class SettingsFactory:
    """Makes sampling settings of a run; prints one note per flag that has no effect or is replaced."""

    def __init__(self, arguments: Arguments, model: GenerativeModel, trained: Run):
        self._model, self._sampler_config = model, trained.config.sampler
        self._has_weak, self._printed = bool(arguments.weak), set()

    def __call__(self, capacity: int | None = None, **overrides: Any) -> SamplingSettings:
        """Returns settings with `overrides`, padded to `capacity` steps."""
        settings = self._model.make_settings(self._sampler_config, capacity=capacity, **overrides)
        for message in _ineffective_flags(self._model, settings, overrides, has_weak=self._has_weak):
            if message not in self._printed:
                self._printed.add(message)
                note(message)
        return settings


def _ineffective_flags(
    model: GenerativeModel, settings: SamplingSettings, overrides: Mapping[str, Any], *, has_weak: bool
) -> Iterator[str]:
    """Yields one line for each setting of the command line that is replaced or has no effect."""
    main = model.main_stage if is_pipeline(model) else ""
    for stage, stage_settings in (settings.stages or {"": settings}).items():
        prefix = f"{stage}:" * bool(stage)
        flags = {name.removeprefix(prefix): value for name, value in overrides.items() if name.startswith(prefix)}
        if stage == main:
            flags |= {name: value for name, value in overrides.items() if ":" not in name}
        suffix = f" of {stage}" * bool(stage)
        if stage_settings.times.size:
            yield from _ineffective_diffusion_flags(stage_settings, flags, suffix, has_weak)
        elif stage_settings.scalars.get("top_k") == 1:
            for name in sorted({"temperature", "top_p"} & flags.keys()):
                yield f"--{name}={flags[name]:g}{suffix}: has no effect at top_k=1, which takes the most likely token"
    if ("prior", "none") in settings.choices and "candidates" in overrides:
        yield f"--candidates={overrides['candidates']}: has no effect at prior=none, which samples no embedding"


def _ineffective_diffusion_flags(
    settings: SamplingSettings, flags: Mapping[str, Any], suffix: str, has_weak: bool
) -> Iterator[str]:
    scales = {name: float(value) for name, value in settings.scalars.items()}
    if flags.get("steps", settings.num_steps) != settings.num_steps:
        yield f"--steps={flags['steps']}{suffix}: replaced by {settings.num_steps}, the number of steps of the grid"
    if has_weak and scales["weak_scale"] == 1.0:
        yield "--weak: has no effect at weak_scale=1; set --weak_scale"
    interval = {"guidance_low", "guidance_high"} & flags.keys()
    is_unguided = scales["guidance"] == 1.0
    if is_unguided and "guidance_rescale" in flags:
        yield f"--guidance_rescale={flags['guidance_rescale']:g}{suffix}: has no effect at guidance=1"
    if is_unguided and not (has_weak and scales["weak_scale"] != 1.0):
        for name in sorted(interval):
            yield f"--{name}={flags[name]:g}{suffix}: has no effect at guidance=1"
    elif interval and scales["guidance_low"] >= scales["guidance_high"]:
        low, high = scales["guidance_low"], scales["guidance_high"]
        yield f"--guidance_low={low:g}, --guidance_high={high:g}{suffix}: the interval is empty, so nothing is guided"


def setting_values(arguments: Arguments, name: str) -> list[dict[str, Any]]:
    """Returns the overrides for each value of a setting's flag; STAGE:VALUE sets it for one stage of a pipeline.

    Raises:
      UserError: a value cannot be read.
    """
    text = getattr(arguments, name)

    def parse(part: str) -> dict[str, Any]:
        stage, colon, value = part.rpartition(":")
        return {f"{stage}{colon}{key}": setting for key, setting in SETTINGS[name].parse(value).items()}

    try:
        return [parse(part) for part in entries(name, text)]
    except ValueError as error:
        kind = "whole numbers" if name in ("steps", "top_k", "candidates") else "numbers"
        raise UserError(f"--{name}={text}: must be {kind} separated by commas") from error
