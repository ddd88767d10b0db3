"""Prints docs/combinations.md: what combines with what, found by asking the code.

python docs/combinations.py > docs/combinations.md
"""

import inspect

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax.diffusion import (
    loss_weighting,
    losses,
    noise_schedules,
    parameterizations,
    samplers,
    sampling,
    time_grids,
    time_sampling,
    variance,
)
from diffjax.diffusion.denoiser import Denoised
from diffjax.errors import UserError
from diffjax.models.diffusion.process import GIVEN, Process
from diffjax.registry import choices, options

_DEFAULTS = {
    "schedule": "cosine",
    "zero_terminal_snr": False,
    "timesteps": 8,
    "continuous": False,
    "parameterization": "v",
    "loss": "mse",
    "weighting": "simple",
    "times": "uniform",
    "variance": "fixed_small",
}


def fits(**changes) -> bool:
    """Whether a `diffusion` section with these choices is accepted."""
    if changes.get("schedule") == "learned":
        changes = {"loss": "vlb", **changes}
    try:
        Process.from_config(ConfigDict({**_DEFAULTS, **changes}))
        return True
    except UserError:
        return False


def table(rows: list[str], columns: list[str], cell) -> str:
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[f"`{row}`", *(cell(row, column) for column in columns)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def both_kinds(**changes) -> str:
    """In words: on discrete and on continuous schedules."""
    discrete, continuous = (fits(continuous=continuous, **changes) for continuous in (False, True))
    return {(1, 1): "yes", (1, 0): "discrete", (0, 1): "continuous", (0, 0): "refused"}[discrete, continuous]


def evaluations(name: str) -> tuple[str, str]:
    """How often a sampler asks the denoiser in four steps, the last to the clean image; and whether it adds noise."""
    schedule = noise_schedules.scaled_linear(100)  # four steps are short enough for every method
    given = {"schedule": schedule, "steps": 4, "churn": 0.1}
    make = choices(samplers)[name]
    sampler = make(**{option: value for option, value in given.items() if option in options(make)})
    asked = 0

    def denoiser(x, noise):
        nonlocal asked
        asked += 1
        return Denoised(0.5 * x)

    levels = schedule(time_grids.trailing(4, schedule))
    with jax.disable_jit():
        ends = [
            sampling.run(jax.random.split(jax.random.key(seed), 1), denoiser, sampler, levels, 4, jnp.ones((1,)))
            for seed in (0, 1)
        ]
    return f"{asked // 2}", "no" if jnp.allclose(*ends) else "yes"


def main() -> str:
    modules = (noise_schedules, parameterizations, losses, loss_weighting, time_sampling, variance, samplers)
    names = {module.__name__.split(".")[-1]: sorted(choices(module)) for module in modules}

    def sampler_row(name, column):
        function = choices(samplers)[name]
        if column != "options":
            return evaluations(name)[column == "adds noise"]
        parameters = inspect.signature(function).parameters
        own = sorted(options(function) - set(GIVEN))
        return ", ".join(f"`{option}={parameters[option].default:g}`" for option in own)

    return "\n\n".join(
        [
            "# What combines with what",
            "Made by `python docs/combinations.py > docs/combinations.md`, which asks the code; a test compares.\n"
            '"discrete" and "continuous" are the kinds of schedule that a combination is for; what is refused is\n'
            "refused when the config is read, with the reason. What is diffused, what a network is told of it and\n"
            "which network it is combine too: [text_to_image.md](text_to_image.md).",
            "## Schedule and parameterization",
            table(names["schedules"], names["parameterizations"],
                  lambda s, p: both_kinds(schedule=s, parameterization=p)),
            "## The same with zero terminal SNR",
            table(names["schedules"], names["parameterizations"],
                  lambda s, p: both_kinds(schedule=s, parameterization=p, zero_terminal_snr=True)),
            "## Loss and variance",
            table(names["losses"], names["variance"], lambda loss, v: both_kinds(loss=loss, variance=v)),
            "## Loss and times",
            table(names["losses"], names["times"], lambda loss, t: both_kinds(loss=loss, times=t)),
            "## Loss and weighting",
            "A weighting weighs the squared error: `mse` and the part of it in `hybrid`; `vlb` has its own weights.",
            table(names["losses"], names["weighting"], lambda loss, w: both_kinds(loss=loss, weighting=w)
                  if "weighting" in options(choices(losses)[loss]) else "not used"),
            "## Samplers",
            "Every sampler runs on every schedule and parameterization, on every grid, with every guidance and\n"
            "threshold (of latents and embeddings, which have no range, `none`); `tests/diffusion/test_samplers.py`\n"
            "measures their orders and runs the triples.",
            table(names["samplers"], ["evaluations in 4 steps", "adds noise", "options"], sampler_row),
        ]
    ) + "\n"  # fmt: skip


if __name__ == "__main__":
    print(main(), end="")
