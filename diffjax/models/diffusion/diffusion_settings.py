"""Sampling settings of diffusion models, from a config's `sampler` section and overrides."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax import numpy as jnp

from diffjax.diffusion import clipping, samplers, time_grids
from diffjax.errors import UserError, validate_integer, validate_number
from diffjax.models.diffusion import guidance_settings, inverse_settings
from diffjax.models.diffusion.process import INJECTED_ARGUMENTS, Process
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.registry import Choice, check_options, lookup, option_defaults, options

OPTIMIZED = "optimized"  # grid of the run's own, from launch.py optimize_grid
OptimizedGrids = tuple[tuple[str, int, tuple[float, ...]], ...]  # sampler, steps, times

_SCALES = {  # of guidance and noise: traced inputs
    "guidance": 1.0,  # s = 1 + w of classifier-free guidance; 1: off
    "first_scale": 1.0,  # of first_condition alone; 1: off
    "guidance_rescale": 0.0,  # weight [0, 1] of rescaling to the unguided contrast
    "guidance_low": 0.0,  # guidance applies above this sigma / alpha ...
    "guidance_high": float("inf"),  # ... and up to this
    "classifier_scale": 1.0,  # of classifier guidance; used with a classifier
    "weak_scale": 1.0,  # of autoguidance; used with a weaker model
    "perturbed_scale": 1.0,  # of guidance by a perturbation of the network; 1: off
    "clip_scale": 0.0,  # of CLIP guidance; used with a CLIP of noised images
    "augmentation": 0.0,  # level [0, 1] of conditioning augmentation, for upsamplers
    "temperature": 1.0,  # factor of the noise that steps add
}
_DEFAULTS = {
    "grid": "trailing",
    "threshold": "clip",
    "strength": 1.0,  # fraction (0, 1] of the process that image-to-image goes back
    "resample_steps": 1,  # times that each step is repeated for inpainting
    "number": None,  # of conditions.number
    "perturbation": "none",  # of the network, for guidance
    "brownian": False,  # whether the noise of steps is that of one Brownian path per sample
    "keep_known": True,  # whether inpainting replaces the known region of each estimate
    "cache_interval": 1,  # steps between computations of the network's deep features; 1: no caching
    "cache_threshold": 0.0,  # relative change of a DiT's shallow features that has deep ones computed; 0: no caching
    "cache_branch_id": 0,  # skip connection of a UNet, or block of a DiT, before the deep features
    **_SCALES,
    **guidance_settings.DEFAULTS,
}
CONFIG_SETTINGS = {"name", "steps", *_DEFAULTS}
SETTINGS = {*CONFIG_SETTINGS, *inverse_settings.DEFAULTS}


def make_diffusion_settings(
    process: Process,
    sampler_config: Mapping[str, Any],
    *,
    guided: Collection[str],
    guidance_range: tuple[float, float] | None = None,
    cache_branches: int = 0,
    has_shallow_features: bool = False,
    pixels: bool = True,
    shape: tuple[int, ...] = (),
    sees_mask: bool = False,
    numbers: tuple[float, float] | None = None,
    required_inputs: Collection[str] = (),
    optimized_grids: OptimizedGrids = (),
    capacity: int | None = None,
    **overrides: Any,
) -> SamplingSettings:
    """Makes the sampling settings of a diffusion model.

    Scalars: steps, begin (first step of image-to-image), resample_steps, cache_interval, cache_threshold, and scales of
    guidance and noise. Choices: sampler, threshold, brownian, keep_known, cache_branch_id (None: no caching),
    cache_by_change and those of guidance and of a measurement.

    Args:
      sampler_config: the config's `sampler` section.
      guided: names of the conditions that support classifier-free guidance.
      guidance_range: range of the scale of guidance that is distilled in the model; None: it is not.
      cache_branches: number of values of cache_branch_id; 0: the network does not support feature caching.
      has_shallow_features: whether it supports cache_threshold.
      pixels: whether the model's data are pixels.
      shape: shape of one example of the model's data; (): unknown.
      sees_mask: whether the model is conditioned on the known region of inpainting.
      numbers: range of the number that the model is conditioned on; None: it is not.
      required_inputs: as of `GenerativeModel`.
      optimized_grids: grids of the choice "optimized".
      capacity: number of steps to pad the time grid to.
      overrides: settings, and options of the sampler.

    Raises:
      UserError: an unknown setting, or one that is invalid or does not fit the model.
    """
    sampler_options = {name: value for name, value in overrides.items() if name not in SETTINGS}
    check_options("the config's sampler section", CONFIG_SETTINGS, sampler_config)
    settings = {**_DEFAULTS, **inverse_settings.DEFAULTS, **sampler_config}
    settings |= {name: value for name, value in overrides.items() if name in SETTINGS}
    sampler = lookup("sampler", samplers, settings["name"], injected=INJECTED_ARGUMENTS)
    accepted = options(sampler.function) - set(INJECTED_ARGUMENTS)
    if "sigma_hat" not in accepted and not sampler_options.get("sigma_hat"):
        sampler_options.pop("sigma_hat", None)  # --eta=NUMBER disables it, and only ddim has it
    check_options(f"sampler {sampler.name!r}", accepted, sampler_options)
    # With the defaults, so that samples with and without an option share the compilation.
    defaults = option_defaults(sampler.function)
    defaults = {name: value for name, value in defaults.items() if name not in INJECTED_ARGUMENTS}
    sampler_options = {**defaults, **sampler.options, **sampler_options}
    for name, value in sampler_options.items():
        if not (value == math.inf and name == "high"):
            validate_number(f"sampler.name={sampler.name}, {name}", value, low=0)
    _check_sampler(process, sampler, sampler_options)
    _check_threshold(settings["threshold"])
    _check_numbers(settings)
    if guidance_range:
        validate_number("sampler.guidance", settings["guidance"], *guidance_range)
    _check_model(settings, bool(guided) or guidance_range is not None, pixels, required_inputs)
    if not settings["keep_known"] and not sees_mask:
        raise UserError(
            "sampler.keep_known=False: requires a model with conditions.masked_image, as others do not see the known "
            "region; leave it at True"
        )
    guidance = guidance_settings.read_choices(
        settings,
        guided=guided,
        distilled=guidance_range is not None,
        channels=shape[-1] if len(shape) > 1 else None,
    )
    measure, measure_noise, method = inverse_settings.read_choices(settings, shape, pixels)
    branch = _cache_branch(settings, process, sampler_options, cache_branches, has_shallow_features)
    number = _number(settings["number"], numbers)
    if settings["grid"] == OPTIMIZED:
        settings["grid"] = _optimized_grid(optimized_grids, sampler.name, settings["steps"])
    times = _times(process, settings)
    steps = len(times) - 1
    begin = np.sum(times / process.schedule.timesteps > settings["strength"] + 1e-9)  # 1e-9: of rounding
    scalars = {
        "steps": jnp.asarray(steps),
        "begin": jnp.asarray(min(int(begin), steps - 1)),
        "resample_steps": jnp.asarray(int(settings["resample_steps"])),
        "cache_interval": jnp.asarray(int(settings["cache_interval"])),
        "cache_threshold": jnp.asarray(float(settings["cache_threshold"])),
        **_arrays({name: settings[name] for name in _SCALES} | number),
        **measure_noise,
    }
    return SamplingSettings(
        scalars=scalars,
        choices=(
            ("sampler", sampler.name),
            ("threshold", settings["threshold"]),
            ("perturbation", settings["perturbation"]),
            ("brownian", bool(settings["brownian"])),
            ("keep_known", bool(settings["keep_known"])),
            ("cache_branch_id", branch),
            ("cache_by_change", settings["cache_threshold"] > 0),
            *guidance.names.items(),
            *measure.items(),
        ),
        times=jnp.asarray(np.pad(times, (0, max(0, (capacity or 0) - steps))), jnp.float32),
        sampler_options=_arrays(sampler_options),
        guidance_options=guidance.options | {"inverse": method},
    )


def _check_sampler(process: Process, sampler: Choice, sampler_options: Mapping[str, float]) -> None:
    """Raises UserError for options out of the range of a sampler."""
    make = Choice(sampler.name, sampler.function, (), {}).bind(
        schedule=process.schedule, steps=1, variance=process.variance.bind()
    )
    try:
        make(**sampler_options)
    except ValueError as error:
        raise UserError(f"sampler.name={sampler.name}, {error}") from error


def _check_threshold(text: str) -> None:
    """Raises UserError for an unknown threshold, or options out of range."""
    threshold = lookup("sampler.threshold", clipping, text)
    try:
        jax.eval_shape(threshold.bind(), jnp.zeros((1, 1)))
    except ValueError as error:
        raise UserError(f"sampler.threshold={text}: {error}") from error


def _check_numbers(settings: Mapping[str, Any]) -> None:
    """Raises UserError for a number out of its range."""
    for name in _SCALES:
        if not (settings[name] == math.inf and name == "guidance_high"):
            validate_number(f"sampler.{name}", settings[name])
    validate_number("sampler.guidance_rescale", settings["guidance_rescale"], low=0, high=1)
    validate_number("sampler.augmentation", settings["augmentation"], low=0, high=1)
    validate_number("sampler.temperature", settings["temperature"], low=0)
    validate_number("sampler.strength", settings["strength"], low=0, high=1, exclusive="low")
    for name in ("steps", "resample_steps", "cache_interval"):
        validate_integer(f"sampler.{name}", settings[name])
    validate_number("sampler.cache_threshold", settings["cache_threshold"], low=0)
    validate_integer("sampler.cache_branch_id", settings["cache_branch_id"], low=0)


def _check_model(settings: Mapping[str, Any], guided: bool, pixels: bool, required_inputs: Collection[str]) -> None:
    """Raises UserError for a setting that the model does not support."""
    if settings["guidance"] != 1.0 and not guided:
        raise UserError(
            f"sampler.guidance={settings['guidance']:g}: requires a model trained with diffusion.label_dropout > 0, or "
            "with another condition's dropout > 0; leave it at 1"
        )
    threshold = lookup("sampler.threshold", clipping, settings["threshold"])
    if not pixels and threshold.function is not clipping.none and "limit" not in threshold.options:
        raise UserError(
            f"sampler.threshold={settings['threshold']}: is the range of pixels, which latents and embeddings do not "
            "have; set it to none or clip(limit=...)"
        )
    if settings["augmentation"] and "low_res_image" not in required_inputs:
        raise UserError(
            f"sampler.augmentation={settings['augmentation']:g}: is only supported for upsamplers; leave it at 0"
        )


def _cache_branch(
    settings: Mapping[str, Any],
    process: Process,
    sampler_options: Collection[str],
    branches: int,
    has_shallow_features: bool,
) -> int | None:
    """Returns the branch of feature caching; None: no caching. Raises UserError where it is not supported."""
    interval, threshold, branch = (settings[f"cache_{name}"] for name in ("interval", "threshold", "branch_id"))
    if interval == 1 and not threshold:
        return None
    problem, field = "", "cache_threshold" if threshold else "cache_interval"
    if threshold and interval != 1:
        problem = f"cannot be combined with cache_interval={interval}, another rule for the same steps"
    elif threshold and not (branches and has_shallow_features):
        problem = "requires a DiT or MMDiT of two layers or more"
    elif not branches:
        problem = "requires a UNet, or a DiT of two layers or more"
    elif process.needs.interval:
        problem = "is not supported for flow maps, which sample in few steps"
    elif {"max_evaluations", "inner_steps"} & set(sampler_options):
        problem = f"is not supported with sampler.name={settings['name']}, whose steps consist of further steps"
    elif settings["measure"]:
        problem = "is not supported with a measurement, whose gradient is that of the whole network"
    if problem:
        raise UserError(f"sampler.{field}={settings[field]:g}: {problem}; leave it at {_DEFAULTS[field]:g}")
    if branch >= branches:
        raise UserError(f"sampler.cache_branch_id={branch}: must be from 0 to {branches - 1} for this network")
    return int(branch)


def _number(value: float | None, numbers: tuple[float, float] | None) -> dict[str, float]:
    """Returns the setting of a model conditioned on a number, else {}. Raises UserError if it does not fit."""
    if numbers is None:
        if value is not None:
            raise UserError(f"sampler.number={value:g}: requires a model with conditions.number; remove it")
        return {}
    if value is None:
        low, high = numbers
        raise UserError(
            f"sampler.number: is missing, as the model is conditioned on a number from {low:g} to {high:g}; pass "
            f"--number={(low + high) / 2:g}, or set it in the config"
        )
    return {"number": validate_number("sampler.number", value, *numbers)}


def _optimized_grid(grids: OptimizedGrids, sampler: str, steps: int) -> str:
    """Returns the stored grid of a sampler and a number of steps as a choice. Raises UserError if it is missing."""
    for name, count, times in grids:
        if (name, count) == (sampler, steps):
            return f"times({', '.join(map(repr, times[:-1]))})"
    stored = ", ".join(f"{name} in {count} steps" for name, count, _ in grids)
    only = f", only of {stored}" if stored else ""
    raise UserError(
        f"sampler.grid={OPTIMIZED}: there is no grid of {sampler} in {steps} steps{only}; search one with launch.py "
        "optimize_grid"
    )


def _times(process: Process, settings: Mapping[str, Any]) -> np.ndarray:
    """Returns the time grid [steps + 1]. Raises UserError for an invalid one."""
    grid = lookup("grid", time_grids, settings["grid"])
    try:
        with np.errstate(all="ignore"):
            times = grid.bind()(int(settings["steps"]), process.schedule, *grid.values)
        if not (np.isfinite(times).all() and (np.diff(times) < 0).all()):
            raise ValueError("its times must decrease; use other options")
        return times
    except (ValueError, ArithmeticError, MemoryError) as error:
        raise UserError(f"sampler.steps={settings['steps']}, sampler.grid={settings['grid']}: {error}") from error


def _arrays(values: Mapping[str, float]) -> dict[str, Array]:
    return {name: jnp.asarray(value, jnp.float32) for name, value in sorted(values.items())}
