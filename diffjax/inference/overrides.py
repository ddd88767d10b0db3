"""Sampling settings in the place of a config's, one value each or lists, from the text of flags."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from diffjax.diffusion import (
    clipping,
    guidance_rules,
    guidance_schedules,
    masking_schedules,
    samplers,
    time_grids,
    unmasking,
)
from diffjax.errors import UserError, note
from diffjax.models.base import GenerativeModel
from diffjax.models.capabilities import is_pipeline
from diffjax.models.diffusion.diffusion_settings import OPTIMIZED
from diffjax.models.diffusion.process import INJECTED_ARGUMENTS
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.parsing import entries, number, texts
from diffjax.registry import choices, lookup, options

_SAMPLERS = (samplers, unmasking)  # of diffusion models, and of masked priors


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


def _boolean(name: str) -> Callable[[str], dict[str, Any]]:
    def parse(text: str) -> dict[str, Any]:
        if text.lower() not in ("true", "false"):
            raise UserError(f"--{name}={text}: must be True or False")
        return {name: text.lower() == "true"}

    return parse


def _guidance(text: str) -> dict[str, Any]:
    return {"guidance": 1.0 + number(text[1:]) if text.startswith("w") else number(text)}


SETTINGS = {
    "sampler": _Setting(f"{' | '.join(choices(*_SAMPLERS))}, with options as in edm(churn=40)", _text("name")),
    "grid": _Setting(
        f"time grid: {' | '.join(choices(time_grids))}, with options as in karras(rho=5); optimized: that of launch.py "
        "optimize_grid",
        _text("grid"),
    ),
    "schedule": _Setting(
        f"masking schedule of the steps of a masked prior: {' | '.join(choices(masking_schedules))}", _text("schedule")
    ),
    "threshold": _Setting(f"clipping of each x_0 estimate: {' | '.join(choices(clipping))}", _text("threshold")),
    "guidance": _Setting("scale s of classifier-free guidance, 1: unguided; w0.5 means s = 1 + 0.5", _guidance),
    "first_condition": _Setting("condition with a scale of its own, such as image_embedding", _text("first_condition")),
    "first_scale": _Setting("scale of --first_condition, 1: unguided", _number("first_scale")),
    "guidance_rescale": _Setting("weight of rescaling to the unguided contrast, 0 to 1", _number("guidance_rescale")),
    "guidance_low": _Setting("guide only where sigma / alpha is above this", _number("guidance_low")),
    "guidance_high": _Setting("guide only where sigma / alpha is at most this", _number("guidance_high")),
    "guidance_rule": _Setting(
        f"rule of classifier-free guidance: {' | '.join(choices(guidance_rules))}, with options as in "
        "adaptive_projected(eta=0)",
        _text("guidance_rule"),
    ),
    "guidance_schedule": _Setting(
        f"the scale over time: {' | '.join(choices(guidance_schedules))}", _text("guidance_schedule")
    ),
    "guidance_channels": _Setting("guide only so many first channels; 0: all", _number("guidance_channels", int)),
    "classifier_scale": _Setting("scale of --classifier's gradient", _number("classifier_scale")),
    "weak_scale": _Setting("scale of the extrapolation from --weak, 1: unguided", _number("weak_scale")),
    "perturbation": _Setting(
        "perturbation of the network to move away from: identity_attention(BLOCK, ...) (PAG) | skip_blocks(BLOCK, ...)",
        _text("perturbation"),
    ),
    "perturbed_scale": _Setting(
        "scale of the extrapolation from --perturbation, 1: unguided", _number("perturbed_scale")
    ),
    "eta": _Setting("noise of ddim and others: 0 deterministic, 1 ancestral, hat: DDPM's larger variance", _eta),
    "steps": _Setting("number of sampler steps", _number("steps", int)),
    "temperature": _Setting(
        "scale of a prior's logits, a VAE's latents, or the noise of a sampler's steps; below 1: likelier",
        _number("temperature"),
    ),
    "brownian": _Setting("True: noise of one Brownian path per sample, for any number of steps", _boolean("brownian")),
    "cache_interval": _Setting(
        "compute the deep features of the network in every N-th step alone (DeepCache), 1: in all",
        _number("cache_interval", int),
    ),
    "cache_threshold": _Setting(
        "compute them where a DiT's shallow features have changed by this factor, as 0.05 (first-block cache), 0: in "
        "all steps",
        _number("cache_threshold"),
    ),
    "cache_branch_id": _Setting(
        "skip connection of a UNet, or block of a DiT, before the deep features; 0: fastest",
        _number("cache_branch_id", int),
    ),
    "top_k": _Setting("sample tokens from the k most likely, 0: from all", _number("top_k", int)),
    "top_p": _Setting("sample tokens from the most likely with this total probability", _number("top_p")),
    "prior": _Setting("unCLIP's prior: diffusion | ar | none (uses the caption's embedding)", _text("prior")),
    "candidates": _Setting("embeddings sampled by unCLIP's prior, of which one is kept", _number("candidates", int)),
    "clip_scale": _Setting("scale of the gradient of GLIDE's CLIP of noised images", _number("clip_scale")),
    "augmentation": _Setting("degradation level of an upsampler's low-resolution image", _number("augmentation")),
    "number": _Setting("number that the model is conditioned on; `sample` takes several", _number("number")),
    "truncation": _Setting("range of a GAN's latents; lower: more typical images", _number("truncation")),
}

_WHOLE_NUMBERS = {"steps", "cache_interval", "cache_branch_id", "top_k", "candidates", "guidance_channels"}
_NO_EFFECT_UNGUIDED = {name for name in SETTINGS if name.startswith("guidance_")}


def setting_grid(flags: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns all combinations of the flags' values, as overrides of the sampling settings, each once.

    With several samplers, an option that some of them do not take is left out for those.

    Args:
      flags: texts by name in SETTINGS, values separated by commas; None or absent: not set. Other names are ignored.

    Raises:
      UserError: a value cannot be read.
    """
    axes = {name: setting_values(name, flags[name]) for name in SETTINGS if flags.get(name) is not None}
    for name, axis in axes.items():
        if any(value in axis[:i] for i, value in enumerate(axis)):
            note(f"--{name}={flags[name]}: a value is listed twice, and sampled once")
    grid = [dict(itertools.chain(*map(dict.items, cell))) for cell in itertools.product(*axes.values())]
    for cell in grid:
        _check_set_once(cell)
    if len(texts(flags.get("sampler") or "")) > 1 and all("name" in cell for cell in grid):
        accepted = {name: _sampler_options(name) for name in {cell["name"] for cell in grid}}
        known = set().union(*accepted.values())
        grid = [{k: v for k, v in cell.items() if k not in known - accepted[cell["name"]]} for cell in grid]
    return [cell for i, cell in enumerate(grid) if cell not in grid[:i]]


def _sampler_options(name: str) -> set[str]:
    sampler = lookup("sampler", _SAMPLERS, name, injected=INJECTED_ARGUMENTS)
    return options(sampler.function) - set(INJECTED_ARGUMENTS)


def single_setting(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the overrides of the sampling settings, one value per setting or per stage.

    Args:
      flags: texts by name, as of `setting_grid`.

    Raises:
      UserError: a setting has several values, or one that cannot be read.
    """
    overrides: dict[str, Any] = {}
    for name in SETTINGS:
        text = flags.get(name) or ""
        parsed = setting_values(name, text) if text else []
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
        for option in lookup("sampler", _SAMPLERS, value, injected=INJECTED_ARGUMENTS).options:
            if f"{stage}{colon}{option}" in overrides:
                raise UserError(f"--sampler={value}: {option} is also set by its own flag; set it in one place")


def setting_values(name: str, text: str) -> list[dict[str, Any]]:
    """Returns the overrides for each value of a setting's flag; STAGE:VALUE sets it for one stage of a pipeline.

    Raises:
      UserError: a value cannot be read.
    """

    def parse(part: str) -> dict[str, Any]:
        stage, colon, value = part.rpartition(":")
        return {f"{stage}{colon}{key}": setting for key, setting in SETTINGS[name].parse(value).items()}

    try:
        return [parse(part) for part in entries(name, text)]
    except ValueError as error:
        kind = "whole numbers" if name in _WHOLE_NUMBERS else "numbers"
        raise UserError(f"--{name}={text}: must be {kind} separated by commas") from error


def by_flag(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns overrides of sampling settings by the names of their flags; eta is "hat" for DDPM's larger variance."""
    flags = {}
    for name, value in overrides.items():
        stage, colon, setting = name.rpartition(":")
        if setting == "sigma_hat":
            flags |= {f"{stage}{colon}eta": "hat"} if value else {}
        else:
            flags[f"{stage}{colon}{'sampler' if setting == 'name' else setting}"] = value
    return flags


def all_settings(
    sampler_config: Mapping[str, Any], overrides: Mapping[str, Any], settings: SamplingSettings
) -> dict[str, Any]:
    """Returns the `sampler` section of a config with overrides, and the times of a grid that a search may change."""
    merged = {**sampler_config, **overrides}
    if merged.get("grid") != OPTIMIZED:
        return merged
    return merged | {"times": settings.times[: settings.num_steps + 1].tolist()}  # without the padding


class SettingsFactory:
    """Makes sampling settings of a run; prints one note per flag that has no effect or is replaced, and the model's."""

    def __init__(self, model: GenerativeModel, sampler_config: Mapping[str, Any]):
        """`sampler_config` is the `sampler` section of the run's config."""
        self._model, self._sampler_config = model, sampler_config
        self._has_weak, self._printed = getattr(model, "weak", None) is not None, set()

    def __call__(self, capacity: int | None = None, **overrides: Any) -> SamplingSettings:
        """Returns settings with `overrides`, padded to `capacity` steps."""
        settings = self._model.make_settings(self._sampler_config, capacity=capacity, **overrides)
        ineffective = _ineffective_flags(self._model, settings, overrides, has_weak=self._has_weak)
        for message in (*ineffective, *self._model.notes(settings)):
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
    if "cache_branch_id" in flags and settings["cache_branch_id"] is None:
        branch = flags["cache_branch_id"]
        yield f"--cache_branch_id={branch}{suffix}: has no effect; set --cache_interval or --cache_threshold"
    interval = {"guidance_low", "guidance_high"} & flags.keys()
    is_perturbed, has_scale = settings["perturbation"] != "none", scales["perturbed_scale"] != 1.0
    if "perturbation" in flags and is_perturbed and not has_scale:
        yield f"--perturbation={flags['perturbation']}{suffix}: has no effect at perturbed_scale=1; set it"
    if "perturbed_scale" in flags and has_scale and not is_perturbed:
        yield f"--perturbed_scale={flags['perturbed_scale']:g}{suffix}: has no effect at perturbation=none; set it"
    if "first_scale" in flags and scales["first_scale"] != 1.0 and not settings["first_condition"]:
        yield f"--first_scale={flags['first_scale']:g}{suffix}: has no effect without a first_condition; set it"
    is_extrapolated = (has_weak and scales["weak_scale"] != 1.0) or (is_perturbed and has_scale)
    of_others = {"guidance_schedule", *interval} if is_extrapolated else set()
    if not settings.is_guided:
        for name in sorted(_NO_EFFECT_UNGUIDED & flags.keys() - of_others):
            value = flags[name] if isinstance(flags[name], str) else f"{flags[name]:g}"
            yield f"--{name}={value}{suffix}: has no effect at guidance=1"
    if (of_others or settings.is_guided) and interval and scales["guidance_low"] >= scales["guidance_high"]:
        low, high = scales["guidance_low"], scales["guidance_high"]
        yield f"--guidance_low={low:g}, --guidance_high={high:g}{suffix}: the interval is empty, so nothing is guided"
