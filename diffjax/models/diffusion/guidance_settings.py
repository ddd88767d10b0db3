"""Choices of guidance among the sampling settings: its rule, its schedule, and the channels that it guides."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from diffjax.diffusion import clipping, guidance, guidance_rules, guidance_schedules
from diffjax.errors import UserError, validate_integer, validate_number
from diffjax.models.diffusion.process import INJECTED_ARGUMENTS
from diffjax.models.sampling_settings import SamplingSettings, Scalars
from diffjax.registry import choices, lookup, option_defaults, options

_AXES = {"guidance_rule": guidance_rules, "guidance_schedule": guidance_schedules}
DEFAULTS = {
    "guidance_rule": "extrapolation",
    "guidance_schedule": "constant",
    "guidance_channels": 0,  # number of first channels that are guided; 0: all
    "first_condition": "",  # condition with a scale of its own, first_scale; "": all have one scale
}


class GuidanceChoices(NamedTuple):
    """Choices of guidance, and the options of each, by the names of DEFAULTS."""

    names: dict[str, Any]
    options: dict[str, Scalars]


def read_choices(
    settings: Mapping[str, Any], *, guided: Collection[str], distilled: bool, channels: int | None
) -> GuidanceChoices:
    """Reads the choices among the settings of a sampler.

    Args:
      settings: values by name; the names of DEFAULTS are read, and "threshold".
      guided: names of the conditions that support classifier-free guidance.
      distilled: whether the scale of guidance is an input of the network.
      channels: number of channels of the data; None: they have none.

    Raises:
      UserError: an unknown choice or option, one out of range, or one that the model does not support.
    """
    chosen = {name: settings[name] for name in DEFAULTS}
    names, option_values = {}, {}
    for axis, module in _AXES.items():
        choice = lookup(f"sampler.{axis}", module, chosen[axis], injected=INJECTED_ARGUMENTS)
        defaults = {k: v for k, v in option_defaults(choice.function).items() if k not in INJECTED_ARGUMENTS}
        values = {**defaults, **choice.options}
        for name, value in values.items():
            _check_option(f"sampler.{axis}={choice.name}, {name}", name, value)
        names[axis], option_values[axis] = choice.name, {k: jnp.asarray(v, jnp.float32) for k, v in values.items()}
    _check_model(chosen, bool(guided), distilled)
    if option_values["guidance_rule"].get("zero_steps", 0) > 0:
        threshold = lookup("sampler.threshold", clipping, settings["threshold"])
        if threshold.function is not clipping.none:
            raise UserError(
                f"sampler.guidance_rule={chosen['guidance_rule']}: its first steps return noise, which "
                f"sampler.threshold={settings['threshold']} would clip; set the threshold to none, or zero_steps=0"
            )
    names["guidance_channels"] = int(validate_integer("sampler.guidance_channels", chosen["guidance_channels"], low=0))
    if names["guidance_channels"] > (channels or 0):
        limit = f"at most {channels}, the channels of the data" if channels else "0, as the data have no channels"
        raise UserError(f"sampler.guidance_channels={names['guidance_channels']}: must be {limit}")
    names["first_condition"] = str(chosen["first_condition"])
    if names["first_condition"] and (names["first_condition"] not in guided or len(guided) < 2):
        has = f"this model has {', '.join(guided)}" if guided else "this model has none"
        raise UserError(
            f"sampler.first_condition={names['first_condition']}: must be one of two or more conditions with "
            f"dropout > 0; {has}"
        )
    return GuidanceChoices(names, option_values)


def _check_option(field: str, name: str, value: Any) -> None:
    """Raises UserError for an option out of its range."""
    if name == "zero_steps":
        validate_integer(field, value, low=0)
    elif name == "momentum":
        validate_number(field, value, low=-1, high=1, exclusive="high")
    else:
        validate_number(field, value, low=0, exclusive="low" if name == "power" else "")


def _check_model(chosen: Mapping[str, Any], guided: bool, distilled: bool) -> None:
    """Raises UserError for a choice other than the default that the model does not support."""
    for name, value in chosen.items():
        if value == DEFAULTS[name] or (name == "guidance_schedule" and not distilled):  # also of autoguidance
            continue
        advice = "leave it empty" if DEFAULTS[name] == "" else f"leave it at {DEFAULTS[name]}"
        if distilled:
            raise UserError(
                f"sampler.{name}={value}: is not supported with conditions.guidance_scale, as guidance is distilled in "
                f"the network; {advice}"
            )
        if not guided:
            raise UserError(
                f"sampler.{name}={value}: requires a model that supports classifier-free guidance; {advice}"
            )


def has_memory(settings: SamplingSettings) -> bool:
    """Returns whether the rule of guidance has momentum, a memory of the steps before."""
    return "momentum" in settings.guidance_options.get("guidance_rule", {})


def bind_rule(settings: SamplingSettings) -> Callable[[guidance_rules.Estimates, Array | float], guidance_rules.Guided]:
    """Returns the rule of classifier-free guidance with its options."""
    function = choices(guidance_rules)[settings["guidance_rule"]]
    injected = {"times": settings.times} if "times" in options(function) else {}
    chosen = settings.guidance_options["guidance_rule"]
    return lambda estimates, scale: function(estimates, scale, **injected, **chosen)


def bind_scale(settings: SamplingSettings, name: str, last: float) -> guidance.Scale:
    """Returns the scalar `name` as a scale, with its schedule.

    Args:
      last: T, the last timestep.
    """
    if settings["guidance_schedule"] == "constant":
        return settings[name]
    function = choices(guidance_schedules)[settings["guidance_schedule"]]
    chosen = settings.guidance_options["guidance_schedule"]
    return guidance.scheduled(settings[name], lambda progress: function(progress, **chosen), last)
