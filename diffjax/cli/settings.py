"""The sampler's settings as flags: one value each for `sample`, lists for `sweep`; and the models that guide."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags, entries, number, texts
from diffjax.diffusion import clipping, samplers, time_grids
from diffjax.errors import UserError, note
from diffjax.models.autoregressive.prior import Drawing
from diffjax.models.diffusion.guided import guided
from diffjax.models.diffusion.process import GIVEN
from diffjax.models.diffusion.sampling_settings import Plan
from diffjax.models.pipelines.pipeline import ChainPlan
from diffjax.registry import choices, choose, options
from diffjax.runs.loading import Run, load
from diffjax.typing import System, Variables


class _Setting(NamedTuple):
    help: str
    parse: Callable[[str], dict]  # text -> overrides of the plan


def _number(name: str, kind: type = float) -> Callable[[str], dict]:
    return lambda text: {name: number(text, kind)}


def _eta(text: str) -> dict:
    return {"eta": 1.0, "sigma_hat": True} if text == "hat" else {"eta": number(text), "sigma_hat": False}


def _guidance(text: str) -> dict:
    return {"guidance": 1.0 + number(text[1:]) if text.startswith("w") else number(text)}


SETTINGS = {
    "sampler": _Setting(f"{' | '.join(choices(samplers))}, with options as in edm(churn=40)", lambda t: {"name": t}),
    "grid": _Setting(f"times to visit: {' | '.join(choices(time_grids))}, as in karras(rho=5)", lambda t: {"grid": t}),
    "threshold": _Setting(f"range of each estimate: {' | '.join(choices(clipping))}", lambda t: {"threshold": t}),
    "guidance": _Setting("scale s of classifier-free guidance, 1 is none; w0.5 stands for s = 1 + 0.5", _guidance),
    "guidance_rescale": _Setting("share of the unguided contrast to give back, 0 to 1", _number("guidance_rescale")),
    "guidance_low": _Setting("guide where sigma / alpha is above this", _number("guidance_low")),
    "guidance_high": _Setting("and not above this", _number("guidance_high")),
    "classifier_scale": _Setting("of --classifier's gradient", _number("classifier_scale")),
    "weak_scale": _Setting("of the step away from --weak, 1 is none", _number("weak_scale")),
    "eta": _Setting("of ddim and others: 0 deterministic, 1 ancestral, hat for DDPM's larger variance", _eta),
    "steps": _Setting("steps of the sampler", _number("steps", int)),
    "temperature": _Setting("of a prior's codes or a VAE's latents: below 1 likelier ones", _number("temperature")),
    "top_k": _Setting("draw codes from the k likeliest, 0: from all", _number("top_k", int)),
    "top_p": _Setting("draw codes from the likeliest that together have this probability", _number("top_p")),
    "prior": _Setting("of unCLIP: diffusion | ar | none, the caption's own embedding", lambda t: {"prior": t}),
    "candidates": _Setting("embeddings that unCLIP's prior draws, to take the best", _number("candidates", int)),
    "clip_scale": _Setting("of the gradient of GLIDE's CLIP of noised pictures", _number("clip_scale")),
    "augmentation": _Setting("level that an upsampler's smaller picture is degraded to", _number("augmentation")),
    "truncation": _Setting("range of a GAN's latents: lower ones are more typical", _number("truncation")),
}


def define_settings(flags: Flags, *, several: bool) -> None:
    for name, setting in SETTINGS.items():
        text = f"{setting.help}; several, separated by commas" if several else setting.help
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)
    for name, text in {
        "classifier": "run of a classifier of noised images, to guide by (configs/classifier_digits.py)",
        "weak": "run of a weaker model of the same data, to guide away from (autoguidance)",
    }.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)


def cells(arguments: Arguments) -> list[dict]:
    """Every combination of the given values, as overrides of the plan.

    An option that some of several samplers do not take is left out for those, and combinations that are then the same
    are drawn once. Raises UserError for a value that cannot be read.
    """
    given = {name: values(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    for name, axis in given.items():
        if any(value in axis[:i] for i, value in enumerate(axis)):
            note(f"--{name}={getattr(arguments, name)}: a value is listed twice, and drawn once")
    axes = given.values()
    found = [dict(itertools.chain(*map(dict.items, cell))) for cell in itertools.product(*axes)]
    for cell in found:
        _check_set_once(cell)
    if len(texts(arguments.sampler or "")) > 1 and all("name" in cell for cell in found):
        named = {cell["name"] for cell in found}
        takes = {name: options(choose("sampler", samplers, name, given=GIVEN).function) - set(GIVEN) for name in named}
        every = set().union(*takes.values())
        found = [{k: v for k, v in cell.items() if k not in every - takes[cell["name"]]} for cell in found]
    return [cell for i, cell in enumerate(found) if cell not in found[:i]]


def one_cell(arguments: Arguments) -> dict:
    """The settings where each has one value, or one for each stage. Raises UserError where one has several."""
    found = {}
    for name in SETTINGS:
        text = getattr(arguments, name) or ""
        given = values(arguments, name) if text else []
        keys = [key for value in given for key in value]
        if len(set(keys)) < len(keys):
            raise UserError(f"--{name}={text}: give one value here; launch.py sweep takes several")
        found |= {key: value for one in given for key, value in one.items()}
    _check_set_once(found)
    return found


def _check_set_once(cell: dict) -> None:
    """Raises UserError where a flag sets an option that the value of --sampler sets too, as in ddim(eta=0.5)."""
    for name, value in cell.items():
        stage, colon, setting = name.rpartition(":")
        if setting != "name":
            continue
        for option in choose("sampler", samplers, value, given=GIVEN).options:
            if f"{stage}{colon}{option}" in cell:
                raise UserError(f"--sampler={value}: {option} is also set by its own flag; set it in one place")


def batch_size(arguments: Arguments, total: int) -> int:
    """Returns how many of `total` samples are drawn at once; a note says where that is not the given --batch_size."""
    size, devices = min(arguments.batch_size, total), jax.local_device_count()
    if "batch_size" in arguments.given:
        if size < arguments.batch_size:
            note(f"--batch_size={arguments.batch_size}: the samples, {total}, are drawn in one batch")
        elif size % devices:
            whole = math.ceil(size / devices) * devices
            note(f"--batch_size={size}: rounded up to {whole}, as a batch is divided over {devices} devices")
    return size


def with_guides(arguments: Arguments, trained: Run) -> tuple[System, Variables]:
    """The system of a run and its variables, joined with those of --classifier and --weak.

    The system's `plan` prints a note for each setting of the command line that has no effect, or not the one asked for.

    Raises UserError where one of them does not fit the run.
    """
    if trained.system.plan is None:
        raise UserError(
            f"{trained.workdir.path} is a run of system={trained.config.system}, which draws no samples by itself"
            + ": train a prior on its codes (configs/prior_transformer.py)" * (trained.system.codec is not None)
        )
    if arguments.sampler and trained.system.model is None and not trained.system.stages:
        raise UserError(f"--sampler={arguments.sampler}: is only supported for diffusion, not {trained.config.system}")
    guides = {name: load(getattr(arguments, name)) for name in ("classifier", "weak") if getattr(arguments, name)}
    if guides and trained.system.model is None:
        raise UserError(f"--{next(iter(guides))} guides diffusion models, not system={trained.config.system}")
    for name, guide in guides.items():
        if name == "classifier" and trained.system.text:
            raise UserError(
                f"--classifier={guide.workdir.path}: a classifier guides to labels, and {trained.workdir.path} is "
                "conditioned on text; leave it out"
            )
        does = guide.system.classify if name == "classifier" else guide.system.model
        if does is None:
            raise UserError(f"--{name}={guide.workdir.path} is a run of system={guide.config.system}: it cannot be one")
        if guide.spec != trained.spec:
            raise UserError(f"--{name}={guide.workdir.path} was trained on other images: {guide.spec}")
        for field in ("schedule", "timesteps", "continuous", "zero_terminal_snr"):
            theirs, ours = guide.config.diffusion[field], trained.config.diffusion[field]
            if theirs != ours:
                raise UserError(
                    f"--{name}={guide.workdir.path} has diffusion.{field}={theirs} and the run {ours}: guidance "
                    "needs one process"
                )
    for name in ("classifier", "weak"):
        if getattr(arguments, f"{name}_scale") is not None and name not in guides:
            raise UserError(f"--{name}_scale needs --{name}=RUN")
    if arguments.clip_scale is not None and trained.config.system != "glide":
        raise UserError(f"--clip_scale is of a chain with a noised_clip, system=glide, not of {trained.config.system}")
    if not guides:
        return _noting(trained.system, arguments), trained.variables
    system = guided(trained.system, **{name: guide.system for name, guide in guides.items()})
    variables = {"model": trained.variables} | {name: guide.variables for name, guide in guides.items()}
    return _noting(system, arguments), variables


def _noting(system: System, arguments: Arguments) -> System:
    """Returns `system` with a `plan` that prints each of `_without_effect` once."""
    printed = set()

    def plan(sampler_config, capacity=None, **overrides):
        made = system.plan(sampler_config, capacity=capacity, **overrides)
        for message in _without_effect(made, overrides, weak=bool(arguments.weak)):
            if message not in printed:
                printed.add(message)
                note(message)
        return made

    return system._replace(plan=plan)


def _without_effect(made, overrides: dict, *, weak: bool) -> Iterator[str]:
    """Yields a line for each of `overrides`, settings of a command line, that a plan replaces or does not use."""
    chain = isinstance(made, ChainPlan)
    for stage, plan in (made.stages if chain else {"": made}).items():
        own = f"{stage}:" if chain else ""
        given = {name.removeprefix(own): value for name, value in overrides.items() if name.startswith(own)}
        if chain and stage == made.main:
            given |= {name: value for name, value in overrides.items() if ":" not in name}
        of = f" of {stage}" * bool(stage)
        if isinstance(plan, Plan):
            yield from _unused_by_diffusion(plan, given, of, weak)
        elif isinstance(plan, Drawing) and plan.settings["top_k"] == 1:
            for name in {"temperature", "top_p"} & given.keys():
                yield f"--{name}={given[name]:g}{of}: has no effect at top_k=1, which takes the likeliest code"
    if chain and dict(made.choices).get("prior") == "none" and "candidates" in overrides:
        yield f"--candidates={overrides['candidates']}: has no effect at prior=none, which draws no embedding"


def _unused_by_diffusion(plan: Plan, given: dict, of: str, weak: bool) -> Iterator[str]:
    """Yields the lines of `_without_effect` for one diffusion model, whose settings on the command line are `given`."""
    scales = {name: float(value) for name, value in plan.scales.items()}
    if given.get("steps", plan.steps) != plan.steps:
        yield f"--steps={given['steps']}{of}: replaced by {int(plan.steps)}, the steps of the grid"
    if weak and scales["weak_scale"] == 1.0:
        yield "--weak: has no effect at weak_scale=1; set --weak_scale"
    interval = {"guidance_low", "guidance_high"} & given.keys()
    without = scales["guidance"] == 1.0
    if without and "guidance_rescale" in given:
        yield f"--guidance_rescale={given['guidance_rescale']:g}{of}: has no effect at guidance=1"
    if without and not (weak and scales["weak_scale"] != 1.0):
        for name in sorted(interval):
            yield f"--{name}={given[name]:g}{of}: has no effect at guidance=1"
    elif interval and scales["guidance_low"] >= scales["guidance_high"]:
        low, high = scales["guidance_low"], scales["guidance_high"]
        yield f"--guidance_low={low:g}, --guidance_high={high:g}{of}: no level is between them, so nothing is guided"


def values(arguments: Arguments, name: str) -> list[dict]:
    """The overrides that each value of a setting's flag stands for; of a stage of a chain it is written STAGE:VALUE.

    Raises UserError for one that cannot be read.
    """
    text = getattr(arguments, name)

    def parse(part: str) -> dict:
        stage, colon, value = part.rpartition(":")
        return {f"{stage}{colon}{key}": setting for key, setting in SETTINGS[name].parse(value).items()}

    try:
        return [parse(part) for part in entries(name, text)]
    except ValueError as error:
        wanted = "whole numbers" if name in ("steps", "top_k", "candidates") else "numbers"
        raise UserError(f"--{name}={text}: expected {wanted} separated by commas") from error
