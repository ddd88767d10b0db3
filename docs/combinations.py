"""Prints docs/combinations.md: the supported combinations, by validating each of them.

python docs/combinations.py > docs/combinations.md
"""

import functools
import inspect
import re
import sys
from pathlib import Path

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax.diffusion import (
    distribution_matching,
    flow_map_losses,
    losses,
    noise_schedules,
    samplers,
    sampling,
    time_grids,
)
from diffjax.diffusion.denoiser import Denoised
from diffjax.errors import UserError
from diffjax.models.diffusion.axes import AXES
from diffjax.models.diffusion.diffusion_settings import make_diffusion_settings
from diffjax.models.diffusion.process import INJECTED_ARGUMENTS, Process
from diffjax.registry import choices, options

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.diffusion.test_adaptive import ORDERS
from tests.diffusion.test_samplers import SAMPLERS

_DEFAULTS = {
    "schedule": "cosine",
    "zero_terminal_snr": False,
    "timesteps": 128,
    "continuous": False,
    "parameterization": "v",
    "loss": "mse",
    "weighting": "simple",
    "time_sampling": "uniform",
    "variance": "fixed_small",
}

_THRESHOLDS = {"threshold `clip`": "clip", "threshold `dynamic`": "dynamic"}


def fits(**changes) -> bool:
    """Returns whether a `diffusion` section with these choices is valid."""
    if changes.get("schedule") == "learned":
        changes = {"loss": "vlb", **changes}
    if changes.get("parameterization") == "consistency":
        changes = {"weighting": "edm", **changes}
    if changes.get("coupling") == "reflow":
        changes = {**changes, "coupling": "reflow(steps=4)"}
    next_times = {"progressive": "grid", "shortcut": "dyadic", "improved_mean_flow": "second_sample"}
    if changes.get("loss") in next_times:
        changes = {"next_times": next_times[changes["loss"]], **changes}
    try:
        Process.from_config(ConfigDict({**_DEFAULTS, **changes}))
        return True
    except UserError:
        return False


def guidance_fits(field: str, choice: str, column: str) -> str:
    """Returns whether the sampling settings of a model support a choice of guidance."""
    process = Process.from_config(ConfigDict(_DEFAULTS))
    guided, scales = column != "no classifier-free guidance", (1, 4) if column == "distilled guidance" else None
    settings = {"name": "ddim", "steps": 4, "guidance": 1.0 + guided, "threshold": _THRESHOLDS.get(column, "none")}
    settings[field] = choice
    try:
        make_diffusion_settings(process, settings, guided=guided, guidance_range=scales, shape=(8, 8, 3))
        return "yes"
    except UserError:
        return "refused"


def caching_fits(sampler: str) -> str:
    """Returns whether a sampler supports feature caching."""
    process = Process.from_config(ConfigDict(_DEFAULTS))
    try:
        make_diffusion_settings(process, {"name": sampler, "steps": 4}, guided=(), cache_branches=1, cache_interval=2)
        return "yes"
    except UserError:
        return "refused"


def inverse_fits(measure: str, inverse: str) -> str:
    """Returns the data that a measurement and a method support, in words."""
    process = Process.from_config(ConfigDict(_DEFAULTS))

    def is_valid(shape: tuple[int, ...], pixels: bool) -> bool:
        try:
            make_diffusion_settings(process, {"name": "ddim", "steps": 4}, guided=False, pixels=pixels, shape=shape,
                                    measure=measure, inverse=inverse)  # fmt: skip
            return True
        except UserError:
            return False

    colour, one_channel, latents = is_valid((8, 8, 3), True), is_valid((8, 8, 1), True), is_valid((8, 8, 4), False)
    return {(1, 1, 0): "pixels", (1, 0, 0): "pixels of 3 channels"}[colour, one_channel, latents]


def table(rows: list[str], columns: list[str], cell) -> str:
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[f"`{row}`", *(cell(row, column) for column in columns)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def both_kinds(**changes) -> str:
    """Returns the kinds of schedule, discrete and continuous, that support these choices, in one word."""
    discrete, continuous = (fits(continuous=continuous, **changes) for continuous in (False, True))
    return {(1, 1): "yes", (1, 0): "discrete", (0, 1): "continuous", (0, 0): "refused"}[discrete, continuous]


@functools.cache
def evaluations(name: str) -> tuple[str, str]:
    """Returns the denoiser evaluations of a sampler in ten steps, down to zero noise; and whether it adds noise."""
    schedule = noise_schedules.scaled_linear(100)  # ten steps are short enough for every method
    arguments = {"schedule": schedule, "steps": 10, "churn": 0.1}
    make = choices(samplers)[name]
    sampler = make(**{option: value for option, value in arguments.items() if option in options(make)})
    if sampler.evaluations is not None:
        return "adaptive", "no"
    count = 0

    def denoiser(x, noise, next=None):
        nonlocal count
        count += 1
        return Denoised(0.5 * x)

    levels = schedule(time_grids.trailing(10, schedule))
    with jax.disable_jit():
        keys = jax.random.split(jax.random.key(0), 2)
        ends = sampling.run(keys, denoiser, sampler, levels, 10, jnp.ones((2,)))
    return f"{count}", "no" if jnp.allclose(ends[0], ends[1]) else "yes"


def main() -> str:
    names = {axis.name: sorted(choices(axis.module)) for axis in AXES}
    all_losses = choices(losses, flow_map_losses, distribution_matching)
    few_step_losses = [*names["flow_map_losses"], *names["distribution_matching"]]
    loss_names = [*names["losses"], *few_step_losses]

    def sampler_row(name, column):
        function = choices(samplers)[name]
        if column == "order":
            return str(SAMPLERS[name][1] if name in SAMPLERS else ORDERS.get(name, ""))
        if column == "reference":
            match = re.search(r"References?: ((?:.+\n?)+)", inspect.getdoc(function) or "")
            return " ".join(match[1].split()).replace("|", "\\|") if match else ""
        if column == "feature caching":
            return caching_fits(name)
        if column != "options":
            return evaluations(name)[column == "adds noise"]
        parameters = inspect.signature(function).parameters
        user_options = sorted(options(function) - set(INJECTED_ARGUMENTS))
        return ", ".join(f"`{option}={parameters[option].default:g}`" for option in user_options)

    return "\n\n".join(
        [
            "# Supported combinations",
            "Generated by `python docs/combinations.py > docs/combinations.md`; a test keeps it up to date. An entry\n"
            "is the kind of schedule that supports a combination: discrete, continuous or both (yes). Refused ones\n"
            "raise an error when the config is read. Data spaces, conditions and networks combine freely too:\n"
            "[text_to_image.md](text_to_image.md).",
            "## Schedule and parameterization",
            table(names["noise_schedules"], names["parameterizations"],
                  lambda s, p: both_kinds(schedule=s, parameterization=p)),
            "## Schedule and parameterization, with zero terminal SNR",
            table(names["noise_schedules"], names["parameterizations"],
                  lambda s, p: both_kinds(schedule=s, parameterization=p, zero_terminal_snr=True)),
            "## Loss and variance",
            table(loss_names, names["variance"], lambda loss, v: both_kinds(loss=loss, variance=v)),
            "## Loss and time sampling",
            table(loss_names, names["time_sampling"], lambda loss, t: both_kinds(loss=loss, time_sampling=t)),
            "## Loss and weighting",
            "A weighting applies to the squared error of `mse` and `hybrid`; `vlb` has fixed weights. Of the losses\n"
            "of flow maps, those that compare estimates of x_0 have a weighting. That of distribution matching is\n"
            "for its fake score. `learned` applies to all but the bounds and distribution matching.",
            table(loss_names, names["loss_weighting"], lambda loss, w: both_kinds(loss=loss, weighting=w)
                  if w == "learned" or "weighting" in options(all_losses[loss]) else "not used"),
            "## Losses for few steps, second times and metrics",
            table(few_step_losses, [*names["next_times"], *names["loss_metrics"]], lambda loss, choice:
                  both_kinds(loss=loss, **{"next_times" if choice in names["next_times"] else "metric": choice})),
            "## Loss and coupling",
            table(loss_names, names["couplings"], lambda loss, c: both_kinds(loss=loss, coupling=c)),
            "## Samplers",
            "Every sampler supports every schedule, parameterization, time grid, guidance and threshold (latents and\n"
            "embeddings have no range, so their threshold is `none`). `tests/diffusion/test_samplers.py` measures the\n"
            "orders of convergence, of samples or, where noise is added, of their mean and variance; samplers of\n"
            "models for few steps have none. Options are the default ones, but for `edm(churn=2)`,\n"
            "`euler_maruyama(constant=0.3, sbdm=0.2)` and `restart(repeats=0)`, whose order is that of the steps\n"
            "between restarts. Combinations of three choices are tested there too.\n"
            "Adaptive samplers choose the number of evaluations by a tolerance (`tests/diffusion/test_adaptive.py`).",
            table(names["samplers"],
                  ["order", "evaluations in 10 steps", "adds noise", "feature caching", "options", "reference"],
                  sampler_row),
            "## Guidance",
            "Rules and schedules of guidance. All combine with every sampler and with each other. A schedule is that\n"
            "of autoguidance too, which needs no classifier-free guidance.",
            table([*names["guidance_rules"], *names["guidance_schedules"]],
                  ["threshold `none`", *_THRESHOLDS, "distilled guidance", "no classifier-free guidance"],
                  lambda choice, column: guidance_fits(
                      "guidance_rule" if choice in names["guidance_rules"] else "guidance_schedule", choice, column)),
            "## Inverse problems",
            "Measurements and methods. All methods combine with every sampler, guidance and threshold, and none with\n"
            "feature caching.",
            table(names["measurements"], names["inverse_problems"], inverse_fits),
        ]
    ) + "\n"  # fmt: skip


if __name__ == "__main__":
    print(main(), end="")
