"""Random overrides of configs: each trains two steps or is refused in one line that names what is wrong.

Hypothesis makes them of the fields of a config and of the choices that the comments in configs/ name. Slow: 1,000 of
them, a test for each kind of system, so that xdist can share them out.
"""

import collections
import contextlib
import functools
import io
import json
import math
import re
import resource
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest
from hypothesis import strategies as st

from diffjax import cli, registry
from diffjax.diffusion import (
    clipping,
    loss_weighting,
    losses,
    noise_schedules,
    parameterizations,
    samplers,
    time_grids,
    time_sampling,
)
from diffjax.diffusion import variance as variances
from diffjax.latents import output_distributions
from diffjax.models.diffusion import augmentation
from diffjax.runs.config_files import flatten, load_file
from tests import tiny
from tests.firing import cases

FEW, MANY = 16, 1_000  # cases of the default suite and with -m slow, over all kinds together
MEMORY = 12 * 2**30  # bytes that a process may hold: what would take all of the machine's is refused by the system

AXES = {  # fields that name a function of a module
    "schedule": noise_schedules,
    "parameterization": parameterizations,
    "loss": losses,
    "weighting": loss_weighting,
    "times": time_sampling,
    "variance": variances,
    "likelihood": output_distributions,
    "name": samplers,
    "grid": time_grids,
    "threshold": clipping,
    "degradation": augmentation,
}
NUMBERS = ("0", "1", "-1", "0.5", "2", "1e-3", "1e30", "1e-30", "nan", "inf", "-inf")
COUNTS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "12", "16", "-1", "-8")
HUGE = ("1000000", str(2**31 - 1), str(2**31), str(2**32), str(10**12), str(2**63), str(10**30))
LOOPED = ("steps", "layers", "blocks", "depth", "candidates", "transformer_depth", "components", "length")  # for hours
TUPLES = ("()", "(1,)", "(2,)", "(0,)", "(-1,)", "(1,2)", "(1,2,2)", "(1,1,1,1,1)", "(4,)", "(8,4)", "(3,)", "(1.5,)")
WRONG = ("", "nonsense", "None", "true", "1.5", "(1,", "('a',)", "(1,(2,3))", "5", "a" * 200, "é", "nan", "[1]", "a=b")
TEXTS = ("", "nonsense", "@nowhere", "@", "/nowhere", "simple(", "l2(variance=x)", "ddim(eta=1)(2)", "a b", "None")


# The kinds of systems: config files that are small and quick, on trained parts where they stand on some.


@functools.cache
def home() -> Path:
    return Path(tempfile.mkdtemp(prefix="fire"))


QUICK = {
    "train__steps": 2,
    "train__batch_size": 8,
    "train__warmup_steps": 0,
    "train__sample_count": 0,
    "train__checkpoint_every": 0,
    "train__skip_limit": 0,
    "parallel__count": 1,
}


@functools.cache
def trained(kind: str) -> str:
    """The folder of a run that others stand on."""
    path = home() / f"run_{kind}"
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(["launch.py", "train", f"--config={KINDS[kind]()}", f"--workdir={path}"])
    assert code == 0, said.getvalue()
    return str(path)


def written(kind: str, made) -> Path:
    """A file of a config, once it is quick."""
    path = home() / f"{kind}.py"
    values = made.to_dict()
    if "attention_resolutions" in values.get(
        "model", {}
    ):  # the compiler takes most of the time: a network of one level
        values["model"] |= {"attention_resolutions": (), "multipliers": (1,)}
    for name, value in QUICK.items():
        section, field = name.split("__")
        if section in values and (section != "train" or "steps" in values["train"]):
            values[section][field] = value
    path.write_text(
        "from ml_collections import ConfigDict\ninf = float('inf')\n"
        f"def get_config():\n    return ConfigDict({values!r})\n"
    )
    return path


def plain(base: str, **changes):
    return lambda kind: written(kind, tiny.config(base, **changes))


def stage(name: str, **changes):
    """`changes` are values or, of a field that names a run, a function that gives it."""
    return lambda kind: written(kind, tiny.stage(name, **{k: v() if callable(v) else v for k, v in changes.items()}))


def over_digits(base: str, codec: str, **changes):
    return lambda kind: written(kind, tiny.config(base, codec=trained(codec), **changes))


def latent(kind: str) -> Path:
    shapes = dict(tiny.SHAPES)
    made = tiny.config("latent_shapes", **shapes, codec=trained("codec"), clip=trained("clip"))
    with made.unlocked():
        del made.parts
        made.model.update({"channels": 8, "norm_groups": 4, "multipliers": (1, 2), "attention_resolutions": (4,)})
        if "head_channels" in made.model:
            made.model.head_channels = 4
        made.sampler.steps, made.diffusion.timesteps = 2, 20
    return written(kind, made)


def dalle(kind: str) -> Path:
    made = tiny.config("dalle_shapes", **tiny.SHAPES, codec=trained("codec"), text=tiny.TEXT)
    with made.unlocked():
        del made.parts
        made.rerank.clip = trained("clip")
    return written(kind, made)


def chained(name: str, *stages: str):
    def make(kind: str) -> Path:
        made = tiny.config(f"{name}_shapes", **tiny.SHAPES)
        with made.unlocked():
            del made.parts
            for field, value in made.items():
                if isinstance(value, str) and value.startswith("@"):
                    made[field] = trained(field) if field in stages else ""
            made.sampler.stages = {s: {"steps": 2} for s in made.sampler.get("stages", {}) if s in stages}
        return written(kind, made)

    return make


def clip():
    return trained("clip")


MAKERS = {
    "ddpm": plain("digits"),
    "dit": plain("digits", model={"architecture": "dit", "patch": 2, "width": 16, "layers": 1, "heads": 2}),
    "learned": plain("digits", diffusion__variance="learned_range", diffusion__loss="hybrid"),
    "classifier": plain("classifier_digits"),
    "base": stage("base"),
    "upsampler": stage("upsampler"),
    "inpainting": stage("inpainting"),
    "clip": stage("clip"),
    "noised_clip": stage("noised_clip"),
    "pca": stage("pca", clip=clip),
    "prior": stage("prior", clip=clip),
    "ar_prior": stage("ar_prior", clip=clip, codec=lambda: trained("pca")),
    "decoder": stage("decoder", clip=clip),
    "codec": plain("vqvae", **tiny.SHAPES),
    "latent": latent,
    "dalle": dalle,
    "vae": plain("vae"),
    "kl": plain("kl"),
    "vqvae": plain("vqvae"),
    "vqvae2": plain("vqvae2"),
    "vqgan": plain("vqgan", adversarial__start=0),
    "dvae": plain("dvae"),
    "collapse": plain("posterior_collapse", pixelcnn__features=8, pixelcnn__layers=2),
    "prior_pixelcnn": over_digits("prior_pixelcnn", "vqvae"),
    "prior_transformer": over_digits("prior_transformer", "vqvae2"),
    "gan": plain("gan"),
    "ddgan": plain("ddgan"),
    "glide": chained("glide", "base", "upsampler", "noised_clip"),
    "unclip": chained("unclip", "clip", "pca", "prior", "ar_prior", "decoder", "upsampler"),
}
KINDS = {kind: functools.cache(functools.partial(make, kind)) for kind, make in MAKERS.items()}


# Overrides of their fields.


@functools.cache
def documented() -> dict[str, list[str]]:
    """The words between bars in the comments of configs/, by field."""
    found = collections.defaultdict(set)
    for path in (tiny.ROOT / "configs").glob("*.py"):
        for field, comment in re.findall(r" config\.([\w.]+) = .*?  # (.*)", path.read_text()):
            if "|" in comment:
                found[field] |= set(re.findall(r"[a-z][\w]*(?:\([^)]*\))?(?=\"?(?: \||$|,|:| \())", comment))
    return {field: sorted(words) for field, words in found.items()}


def named(module) -> st.SearchStrategy[str]:
    """A choice of an axis, often with options."""

    def written(name):
        options = sorted(registry.options(module_functions[name]))
        one = st.tuples(st.sampled_from(options or ["nothing"]), st.sampled_from(NUMBERS))
        return st.one_of(st.just(name), one.map(lambda pair: f"{name}({pair[0]}={pair[1]})"))

    module_functions = registry.choices(module)
    return st.sampled_from(sorted(module_functions)).flatmap(written)


def values(field: str, value) -> st.SearchStrategy[str]:
    """What a field may be set to: values of its type for the most part, not all of them sensible."""
    last = field.rpartition(".")[2]
    known = documented().get(field, [])
    if isinstance(value, bool):
        right = st.sampled_from(("true", "false"))
    elif isinstance(value, int):
        near = [str(v) for v in (value + 1, 2 * value, value // 2)] if last != "steps" else []
        right = st.sampled_from((*COUNTS, *near) if last in LOOPED else (*COUNTS, *near, *HUGE))
    elif isinstance(value, float):
        right = st.sampled_from((*NUMBERS, str(2 * value)))
    elif isinstance(value, tuple):
        right = st.sampled_from(TUPLES)
    elif last in AXES and field.split(".")[0] in ("diffusion", "loss", "sampler", "conditions"):
        right = st.one_of(named(AXES[last]), named(AXES[last]), st.sampled_from(TEXTS))
    else:
        right = st.sampled_from((*known, *known, *TEXTS))
    return st.integers(0, 19).flatmap(lambda i: st.sampled_from(WRONG) if i == 7 else right)


@functools.cache
def overrides(kind: str) -> st.SearchStrategy[tuple[str, ...]]:
    """One to four flags of a config; the fields are as likely as one another, some do not exist."""
    fields = flatten(load_file(str(KINDS[kind]())))
    fields = {name: value for name, value in fields.items() if not isinstance(value, dict)}

    def flag(name):
        return values(name, fields[name]).map(lambda value: f"--config.{name}={value}")

    right = st.sampled_from(sorted(fields)).flatmap(flag)
    missing = st.sampled_from(sorted(fields)).map(lambda name: f"--config.{name}s=1")
    one = st.integers(0, 59).flatmap(lambda i: missing if i == 7 else right)
    counts = st.sampled_from((1, 1, 1, 1, 2, 2, 3, 4))
    return counts.flatmap(lambda n: st.tuples(*[one] * n).filter(_distinct))


def _distinct(flags) -> bool:
    return len({flag.split("=")[0] for flag in flags}) == len(flags)


# What comes of them.


class Outcome(NamedTuple):
    kind: str  # "trained" | "refused" | "bug"
    said: str


def outcome(kind: str, flags) -> Outcome:
    """Of training with overrides, judged."""
    run = Path(tempfile.mkdtemp(dir=home())) / "run"
    more = []
    if any(".sampler." in flag for flag in flags) and "sample_count" in KINDS[kind]().read_text():
        more = ["--config.train.sample_count=2"]  # a sheet is drawn by it
    argv = ["launch.py", "train", f"--config={KINDS[kind]()}", f"--workdir={run}", *more, *flags]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(argv)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome("bug", "".join(traceback.format_exception(error)[-12:]))
    finally:
        made = _steps(run)
        shutil.rmtree(run.parent)
    said = [line for line in re.split(r"[\r\n]+", err.getvalue()) if line.strip()]
    lines = [line for line in said if not re.search("step/s|s/step", line)]
    if code == 0:
        skipped = " is skipped" in out.getvalue()
        silent = [m for m in made if not all(v is not None and math.isfinite(v) for v in m.values()) and not skipped]
        return Outcome("bug", f"not finite: {silent}") if silent else Outcome("trained", out.getvalue())
    if code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        return Outcome("bug", f"code {code}: {lines}")
    return Outcome("refused" if _names(lines[0], flags) else "bug", lines[0])


def _steps(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _names(line: str, flags) -> bool:
    """Whether a refusal names a field that was set, or what it was set to."""
    if "Try a lower train.learning_rate" in line:
        return True
    parts = [flag.removeprefix("--config.").split("=", 1) for flag in flags]
    return any(name.rpartition(".")[2] in line or (len(value) > 2 and value in line) for name, value in parts)


def fire(kind: str, count: int) -> collections.Counter:
    """Tries `count` overrides; what went wrong is told all at once."""
    found, bugs, seen = collections.Counter(), [], set()

    @cases(count)
    @hypothesis.given(overrides(kind))
    def case(flags):
        hypothesis.assume(not seen.issuperset(flags))  # something is new each time
        seen.update(flags)
        result = outcome(kind, flags)
        found[result.kind] += 1
        if result.kind == "bug":
            bugs.append(f"{kind} {' '.join(flags)}\n{result.said}")

    case()
    assert not bugs, "\n\n".join(bugs)
    return found


WITHOUT_PARTS = ("ddpm", "dit", "classifier", "clip", "vae", "vqvae", "dvae", "gan")


@pytest.mark.parametrize("kind", WITHOUT_PARTS)
def test_a_few_overrides_train_or_are_refused(kind):
    fire(kind, FEW // len(WITHOUT_PARTS))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_many_overrides_train_or_are_refused(kind, record_property):
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    for name, count in fire(kind, math.ceil(MANY / len(KINDS))).items():
        record_property(name, count)


# What once raised, hung or was taken in silence.
REFUSED = {
    "ddpm": (
        "seed=4294967296",
        "data.image_size=1000000000000",
        "model.channels=-8",
        "model.blocks=-1",
        "model.heads=0",
        "model.multipliers=()",
        "model.multipliers=(0.1,)",
        "model.multipliers=(1e30,)",
        "model.norm_groups=1000000000000",
        "diffusion.schedule=cosine(offset=-1)",
        "diffusion.schedule=edm(rho=0)",
        "diffusion.schedule=edm(rho=1e-30)",
        "diffusion.schedule=edm(sigma_min=0)",
        "diffusion.schedule=linear(beta_min=-1)",
        "diffusion.schedule=linear(beta_max=0)",
        "diffusion.schedule=rectified_flow(shift=0)",
        "diffusion.schedule=sigmoid(temperature=0)",
        "diffusion.schedule=variance_exploding(sigma_min=0)",
        "diffusion.weighting=edm(sigma_data=0)",
        "diffusion.weighting=p2(k=-1)",
        "diffusion.parameterization=edm(sigma_data=0)",
        "diffusion.times=log_normal(std=0)",
        "diffusion.times=importance(horizon=0)",
        "sampler.grid=karras(rho=1e-30)",
        "sampler.guidance=nan",
        "sampler.guidance_rescale=-1",
        "sampler.name=ddim(eta=-1)",
        "sampler.threshold=dynamic(percentile=101)",
        "train.steps=0",
        "train.learning_rate=nan",
        "train.beta2=nan",
        "train.ema_decay=2",
        "train.clip_norm=inf",
        "train.sample_count=2147483647",
        "parallel.count=-1",
    ),
    "vae": (
        "model.channels=1",
        "model.factor=0",
        "model.factor=16",
        "model.latent_channels=0",
        "loss.beta=nan",
        "loss.likelihood=l2(variance=0)",
        "loss.likelihood=logit_laplace(epsilon=1)",
        "loss.perceptual_weight=nan",
        "sampler.temperature=nan",
    ),
    "vqvae": ("codes.commitment=nan", "codes.kind=fsq codes.levels=(2.5,3,3,3)"),
    "vqvae2": ("model.coarser_factors=(0,)", "loss.perceptual_file=@"),
    "vqgan": (
        "adversarial.channels=0",
        "adversarial.weight=nan",
        "model.multipliers=(1.5,)",
        "model.multipliers=()",
        "data.image_size=3",
    ),
    "dvae": ("model.groups=0", "codes.temperature=nan", "loss.kl_weight=nan", "loss.kl_steps=-1"),
    "collapse": ("pixelcnn.features=0",),
    "gan": (
        "model.latent=0",
        "discriminator.penalty=nan",
        "train.discriminator.learning_rate=nan",
        "train.discriminator.learning_rate=1e30",
    ),
    "ddgan": ("mapping.layers=0", "mapping.latent=-1"),
    "clip": ("model.dimensions=0", "text.length=1000000", "data.image_size=7"),
    "upsampler": ("data.image_size=7",),
    "inpainting": ("conditions.erased_image.everything=2",),
}


@pytest.mark.parametrize(("kind", "written"), [(kind, each) for kind, found in REFUSED.items() for each in found])
def test_what_is_refused(kind, written):
    result = outcome(kind, [f"--config.{override}" for override in written.split()])
    assert result.kind == "refused", result.said
