"""Prints docs/combinations.md: the supported combinations, by validating each of them.

python docs/combinations.py > docs/combinations.md
"""

import functools
import inspect
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax import models
from diffjax.conversion.exporting import export_diffusers
from diffjax.diffusion import (
    masking_schedules,
    noise_schedules,
    samplers,
    sampling,
    time_grids,
    unmasking,
)
from diffjax.diffusion.denoiser import Denoised
from diffjax.errors import UserError
from diffjax.models.diffusion.axes import AXES
from diffjax.models.diffusion.diffusion_settings import make_diffusion_settings
from diffjax.models.diffusion.process import INJECTED_ARGUMENTS, Process
from diffjax.models.width_transfer import base_model
from diffjax.registry import choices, options
from diffjax.runs.loading import Run
from diffjax.runs.workdir import Workdir
from diffjax.training import learning_rates, optimization, optimizers
from diffjax.typing import ImageSpec

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests import tiny
from tests.conditioned import CONDITIONS, TEXT
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
    elif changes.get("parameterization") == "consistency":
        changes = {"weighting": "edm", **changes}
    if changes.get("coupling") == "reflow":
        changes = {**changes, "coupling": "reflow(steps=4)"}
    next_times = {"progressive": "grid", "shortcut": "dyadic", "improved_mean_flow": "second_sample"}
    if changes.get("loss") in next_times:
        changes = {"next_times": next_times[changes["loss"]], **changes}
    if changes.get("next_times") == "grid":  # steps that can be halved
        changes = {**changes, "next_times": "grid(steps=16)"}
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


_SPEC = ImageSpec(8, 1, 10)
_TRANSFORMER = {"patch": 2, "width": 8, "layers": 3, "heads": 2}
_LEVELS = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "head_channels": 4}
_NETWORKS = {
    "unet": _LEVELS | {"norm_groups": 4, "norm_min_channels": 0, "time_conditioning": "scale_shift"},
    **dict.fromkeys(("dit", "mmdit", "uvit"), _TRANSFORMER),
    "edm2": _LEVELS,
}
_ALIGNMENT = {"clip": "RUN", "block": 1, "weight": 0.5, "width": 8, "dimensions": 8}


def network_config(architecture: str, caption: bool, **changes) -> ConfigDict:
    """Returns a config of 8x8 digits with class labels and, if `caption`, captions."""
    captions = {"conditions": {"caption": CONDITIONS["caption"]}, "text": TEXT} if caption else {}
    network = {"architecture": architecture, **_NETWORKS[architecture]}
    return tiny.config(**{"model": network, **captions, **changes})


@functools.cache
def network_model(architecture: str, caption: bool = False) -> tuple[ConfigDict, Any]:
    """Returns a config and its model, after a check of its shapes."""
    config = network_config(architecture, caption)
    return config, models.build(config, _SPEC)


def check_network(architecture: str, column: str) -> None:
    """Raises UserError if a network does not support what a column names."""
    needs_caption = architecture == "mmdit"
    if column in ("label alone", "caption"):
        network_model(architecture, column == "caption")
    elif column == "alignment":
        models.build(network_config(architecture, needs_caption, alignment=_ALIGNMENT), _SPEC)
    elif column == "block options":
        options = {"qk_norm": True, "value_residual": True, "registers": 2}
        network = {"architecture": architecture, **_NETWORKS[architecture], **options}
        models.build(network_config(architecture, needs_caption, model=network), _SPEC)
    else:
        config, model = network_model(architecture, needs_caption)
        if column == "perturbation":
            for name in ("identity_attention(0)", "skip_blocks(0)"):
                model.make_settings(config.sampler, perturbation=name)
        elif column == "feature caching":
            model.make_settings(config.sampler, cache_interval=2)
        elif column == "first-block cache":
            model.make_settings(config.sampler, cache_threshold=0.05)
        elif column == "muP":
            base_model(network_config(architecture, needs_caption, train__mup_base_width=8), model)
        else:
            zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.variable_shapes)
            with tempfile.TemporaryDirectory() as folder:
                export_diffusers(Run(Workdir("RUN"), config, _SPEC, model, zeros, 0), Path(folder))


_GUIDANCE = {
    "classifier-free": {"guidance": 2.0},
    "limited to an interval": {"guidance": 2.0, "guidance_high": 3.0},
    "rescaled": {"guidance": 2.0, "guidance_rescale": 0.7},
    "of some channels": {"guidance": 2.0, "guidance_channels": 1},
    "a scale per condition": {"guidance": 2.0, "first_condition": "label"},
    "by a perturbed network": {"perturbation": "skip_blocks(0)", "perturbed_scale": 2.0},
}
_GUIDED = {"one condition": ("label",), "two conditions": ("label", "caption"), "no condition to drop": ()}


def check_guidance(kind: str, column: str) -> None:
    """Raises UserError if a kind of guidance does not support a model, or a sampler."""
    process = Process.from_config(ConfigDict(_DEFAULTS))
    for sampler in choices(samplers) if column == "all samplers" else ("ddim",):
        make_diffusion_settings(
            process,
            {"name": sampler, "steps": 4, **_GUIDANCE[kind]},
            guided=_GUIDED.get(column, _GUIDED["two conditions"]),
            guidance_range=(1, 4) if column == "distilled guidance" else None,
            shape=(8, 8, 3),
        )


def check_grid(name: str, column: str) -> None:
    """Raises UserError if a time grid does not support a kind of schedule, or an option."""
    process = Process.from_config(ConfigDict(_DEFAULTS | {"continuous": column == "continuous"}))
    values = ["100", "50"] * (name == "times") + [column] * ("=" in column)
    grid = f"{name}({', '.join(values)})" if values else name
    make_diffusion_settings(process, {"name": "ddim", "steps": 4, "grid": grid}, guided=())


def check_optimizer(name: str, column: str) -> None:
    """Raises UserError if an optimiser does not support muP, or a schedule of the learning rate."""
    schedule = "constant" if column == "muP" else column
    rate = optimization.learning_rate_schedule(schedule, 1e-3, warmup_steps=2, total_steps=8)
    settings = tiny.config().train.to_dict() | {"optimizer": name, "learning_rate_schedule": schedule}
    optimization.make_optimizer(settings, rate, rate_factors={} if column == "muP" else None)


@functools.cache
def codec() -> tuple[Any, Any]:
    """Returns a VQ-VAE with shapes in the place of its variables."""
    model = models.build(tiny.config("vqvae"), _SPEC)
    return model, {**model.variable_shapes, "frozen": {}}


def check_masking(schedule: str, column: str) -> None:
    """Raises UserError if a masking schedule does not support a loss, or sampling with a method."""
    loss = column if column in ("elbo", "cross_entropy") else "elbo"
    config = tiny.config("masked_digits", masking__schedule=schedule, masking__loss=loss)
    model = models.build(config, _SPEC, codec=codec())
    if loss != column:
        model.make_settings({**config.sampler, "name": column, "schedule": schedule})


def table(rows: list[str], columns: list[str], cell) -> str:
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[f"`{row}`", *(cell(row, column) for column in columns)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def checked_table(rows: list[str], columns: list[str], check: Callable[[str, str], None]) -> str:
    """Returns a table of what `check` supports, with the errors it raises below, by number; X is the choice."""
    errors: list[str] = []

    def cell(row: str, column: str) -> str:
        try:
            check(row, column)
            return "yes"
        except UserError as error:
            text = re.sub(": choose from .*", "", str(error))  # the fields of a network
            text = re.sub(rf'="?({re.escape(row)}|{re.escape(column)})"?(?=[:;])', "=X", text)
            if text not in errors:
                errors.append(text)
            return f"no ({errors.index(text) + 1})"

    text = table(rows, columns, cell)
    lines = [f"{i}. `{error}`" for i, error in enumerate(errors, start=1)]
    return "\n".join([text, "", *lines] if lines else [text])


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
            "raise an error when the config is read. Pixels and latents have the same conditions, which depend on the\n"
            "network (below): [text_to_image.md](text_to_image.md).",
            "## Networks",
            "Each entry is a config that is built. Numbers are those of the errors below the table, where X is the\n"
            "choice. Perturbations are those of guidance, export is that to diffusers. Block options are `qk_norm`,\n"
            "`value_residual` and `registers`. Networks treat every context as they treat captions.",
            checked_table([*_NETWORKS], ["label alone", "caption", "perturbation", "feature caching",
                                         "first-block cache", "alignment", "muP", "export", "block options"],
                          check_network),
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
            "for its fake score. `learned` applies to all but the bounds and distribution matching. Losses with\n"
            "fixed weights have `simple`, the default.",
            table(loss_names, names["loss_weighting"], lambda loss, w: both_kinds(loss=loss, weighting=w)),
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
            "Kinds of guidance, by the conditions that the model can drop. Autoguidance and guidance by a classifier\n"
            "need no condition, but a run of the same images and noise schedule.",
            checked_table([*_GUIDANCE], [*_GUIDED, "distilled guidance", "all samplers"], check_guidance),
            "## Time grids",
            "Grids on both kinds of schedule, and their options on a discrete one.",
            checked_table(names["time_grids"], ["discrete", "continuous", "end=1", "fractional=True"], check_grid),
            "## Optimisers and learning rates",
            checked_table(sorted(choices(optimizers)), ["muP", *sorted(choices(learning_rates))], check_optimizer),
            "## Masked diffusion of tokens",
            "Masking schedules of training by the loss, and of sampling by the sampler. Both may differ.",
            checked_table(sorted(choices(masking_schedules)), ["elbo", "cross_entropy", *sorted(choices(unmasking))],
                          check_masking),
            "## Inverse problems",
            "Measurements and methods. All methods combine with every sampler, guidance and threshold, and none with\n"
            "feature caching.",
            table(names["measurements"], names["inverse_problems"], inverse_fits),
        ]
    ) + "\n"  # fmt: skip


if __name__ == "__main__":
    print(main(), end="")
