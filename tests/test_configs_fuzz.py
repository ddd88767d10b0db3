"""Random overrides of configs: each trains two steps, or is refused in one line that names the field.

Hypothesis generates them from the fields of a config and the choices that configs/common.py lists. Each kind of model
is a test, so that xdist distributes them.
"""

import collections
import contextlib
import functools
import io
import json
import math
import os
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
from diffjax.diffusion import distribution_matching, flow_map_losses, losses
from diffjax.latents import output_distributions
from diffjax.models.diffusion import augmentation
from diffjax.models.diffusion.axes import AXES as DIFFUSION_AXES
from diffjax.runs.config_fields import documented_fields, documented_name
from diffjax.runs.config_files import flatten, load_file
from tests import tiny
from tests.fuzzing import cases

CASES = int(os.environ.get("FUZZ_CASES", "58"))  # over all kinds of models together
MEMORY = 12 * 2**30  # limit of this process in bytes, so that huge configs fail before they use all memory

pytestmark = pytest.mark.slow

AXIS_NAMES = {axis.field.rpartition(".")[2] for axis in DIFFUSION_AXES if axis.field}
AXES = {  # modules of choices, by the last name of their config field
    **{name: tuple(a.module for a in DIFFUSION_AXES if a.field.endswith(f".{name}")) for name in AXIS_NAMES},
    "loss": (losses, flow_map_losses, distribution_matching),
    "likelihood": output_distributions,
    "degradation": augmentation,
}
NUMBERS = ("0", "1", "-1", "0.5", "2", "1e-3", "1e30", "1e-30", "nan", "inf", "-inf")
COUNTS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "12", "16", "-1", "-8")
HUGE = ("1000000", str(2**31 - 1), str(2**31), str(2**32), str(10**12), str(2**63), str(10**30))
LOOPED = (
    "steps",
    "layers",
    "blocks",
    "depth",
    "candidates",
    "transformer_depth",
    "components",
    "length",
)  # large values take hours
TUPLES = ("()", "(1,)", "(2,)", "(0,)", "(-1,)", "(1,2)", "(1,2,2)", "(1,1,1,1,1)", "(4,)", "(8,4)", "(3,)", "(1.5,)")
WRONG = ("", "nonsense", "None", "true", "1.5", "(1,", "('a',)", "(1,(2,3))", "5", "a" * 200, "é", "nan", "[1]", "a=b")
TEXTS = ("", "nonsense", "@nowhere", "@", "/nowhere", "simple(", "l2(variance=x)", "ddim(eta=1)(2)", "a b", "None")


# Kinds of models: config files of tiny networks, with trained parts if they need some.


@functools.cache
def home() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz"))


QUICK = {
    "train__steps": 2,
    "train__batch_size": 8,
    "train__warmup_steps": 0,
    "train__num_preview_samples": 0,
    "train__checkpoint_every": 0,
    "train__max_consecutive_skips": 0,
    "parallel__num_devices": 1,
}


@functools.cache
def trained(kind: str) -> str:
    """Returns the run of a part that other configs need."""
    path = home() / f"run_{kind}"
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(["launch.py", "train", f"--config={KINDS[kind]()}", f"--workdir={path}"])
    assert code == 0, errors.getvalue()
    return str(path)


def written(kind: str, config) -> Path:
    """Writes a config with few steps and small networks."""
    path = home() / f"{kind}.py"
    values = config.to_dict()
    if "attention_resolutions" in values.get("model", {}):  # a network of one level compiles faster
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
    """`changes` are values, or functions that return the run of a field."""
    return lambda kind: written(kind, tiny.stage(name, **{k: v() if callable(v) else v for k, v in changes.items()}))


def over_digits(base: str, codec: str, **changes):
    return lambda kind: written(kind, tiny.config(base, codec=trained(codec), **changes))


def masked_prior(kind: str) -> Path:
    config = tiny.config("masked_digits", codec=trained("vqvae"))
    with config.unlocked():
        del config.parts
    return written(kind, config)


def latent(kind: str) -> Path:
    shapes = dict(tiny.SHAPES)
    config = tiny.config("latent_shapes", **shapes, codec=trained("codec"), clip=trained("clip"))
    with config.unlocked():
        del config.parts
        config.model.update({"channels": 8, "norm_groups": 4, "multipliers": (1, 2), "attention_resolutions": (4,)})
        if "head_channels" in config.model:
            config.model.head_channels = 4
        config.sampler.steps, config.diffusion.timesteps = 2, 20
    return written(kind, config)


def dalle(kind: str) -> Path:
    config = tiny.config("dalle_shapes", **tiny.SHAPES, codec=trained("codec"), text=tiny.TEXT)
    with config.unlocked():
        del config.parts
        config.rerank.clip = trained("clip")
    return written(kind, config)


def chained(name: str, *stages: str):
    def make(kind: str) -> Path:
        config = tiny.config(f"{name}_shapes", **tiny.SHAPES)
        with config.unlocked():
            del config.parts
            for field, value in config.items():
                if isinstance(value, str) and value.startswith("@"):
                    config[field] = trained(field) if field in stages else ""
            config.sampler.stages = {s: {"steps": 2} for s in config.sampler.get("stages", {}) if s in stages}
        return written(kind, config)

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
    "vqgan": plain("vqgan", adversarial__start_step=0),
    "dvae": plain("dvae"),
    "collapse": plain("posterior_collapse", pixelcnn__features=8, pixelcnn__layers=2),
    "prior_pixelcnn": over_digits("prior_pixelcnn", "vqvae"),
    "prior_transformer": over_digits("prior_transformer", "vqvae2"),
    "masked_prior": masked_prior,
    "gan": plain("gan"),
    "ddgan": plain("ddgan"),
    "glide": chained("glide", "base", "upsampler", "noised_clip"),
    "unclip": chained("unclip", "clip", "pca", "prior", "ar_prior", "decoder", "upsampler"),
}
KINDS = {kind: functools.cache(functools.partial(make, kind)) for kind, make in MAKERS.items()}


# Overrides of fields.


@functools.cache
def documented() -> dict[str, list[str]]:
    """Returns the choices that the documentation in configs/common.py lists between bars, by field."""
    texts = {field: text.partition(": ")[2] for field, (_, text) in documented_fields().items() if "|" in text}
    return {field: re.findall(r"[a-z]\w*(?:\([^)]*\))?(?= \||$|,|;| \()", text) for field, text in texts.items()}


def named(module) -> st.SearchStrategy[str]:
    """Returns a strategy for choices of an axis, often with options."""

    def written(name):
        options = sorted(registry.options(module_functions[name]))
        one = st.tuples(st.sampled_from(options or ["nothing"]), st.sampled_from(NUMBERS))
        return st.one_of(st.just(name), one.map(lambda pair: f"{name}({pair[0]}={pair[1]})"))

    module_functions = registry.choices(*(module if isinstance(module, tuple) else (module,)))
    return st.sampled_from(sorted(module_functions)).flatmap(written)


def values(field: str, value) -> st.SearchStrategy[str]:
    """Returns a strategy for values of a field: most have its type, and some are bad."""
    last = field.rpartition(".")[2]
    known = documented().get(documented_name(field), [])
    if isinstance(value, bool):
        right = st.sampled_from(("true", "false"))
    elif isinstance(value, int):
        near = [str(v) for v in (value + 1, 2 * value, value // 2)] if last != "steps" else []
        right = st.sampled_from((*COUNTS, *near) if last in LOOPED else (*COUNTS, *near, *HUGE))
    elif isinstance(value, float):
        right = st.sampled_from((*NUMBERS, str(2 * value)))
    elif isinstance(value, tuple):
        right = st.sampled_from(TUPLES)
    elif last in AXES and field.split(".")[0] in ("diffusion", "masking", "loss", "sampler", "conditions"):
        right = st.one_of(named(AXES[last]), named(AXES[last]), st.sampled_from(TEXTS))
    else:
        right = st.sampled_from((*known, *known, *TEXTS))
    return st.integers(0, 19).flatmap(lambda i: st.sampled_from(WRONG) if i == 7 else right)


@functools.cache
def overrides(kind: str) -> st.SearchStrategy[tuple[str, ...]]:
    """Returns a strategy for one to four overrides; fields are equally likely, and some do not exist."""
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


# Outcomes of training.


class Outcome(NamedTuple):
    kind: str  # "trained" | "refused" | "bug"
    output: str


def outcome(kind: str, flags) -> Outcome:
    """Trains with overrides and returns the outcome."""
    run = Path(tempfile.mkdtemp(dir=home())) / "run"
    more = []
    if any(".sampler." in flag for flag in flags) and "num_preview_samples" in KINDS[kind]().read_text():
        more = ["--config.train.num_preview_samples=2"]  # samples previews with it
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
        logged = _steps(run)
        shutil.rmtree(run.parent)
    lines = [line for line in re.split(r"[\r\n]+", err.getvalue()) if line.strip()]
    lines = [line for line in lines if not re.search("step/s|s/step", line)]
    if code == 0:
        skipped = " is skipped" in out.getvalue()
        silent = [m for m in logged if not all(v is not None and math.isfinite(v) for v in m.values()) and not skipped]
        return Outcome("bug", f"not finite: {silent}") if silent else Outcome("trained", out.getvalue())
    if code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        return Outcome("bug", f"code {code}: {lines}")
    return Outcome("refused" if _names(lines[0], flags) else "bug", lines[0])


def _steps(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _names(line: str, flags) -> bool:
    """Returns whether an error names an override or its value."""
    if "Try a lower train.learning_rate" in line:
        return True
    parts = [flag.removeprefix("--config.").split("=", 1) for flag in flags]
    return any(name.rpartition(".")[2] in line or (len(value) > 2 and value in line) for name, value in parts)


def fuzz(kind: str, count: int) -> collections.Counter:
    """Tries `count` overrides; raises for all failures together, and returns the number of each outcome."""
    outcomes, bugs, seen = collections.Counter(), [], set()

    @cases(count)
    @hypothesis.given(overrides(kind))
    def case(flags):
        hypothesis.assume(not seen.issuperset(flags))  # each case has a new override
        seen.update(flags)
        result = outcome(kind, flags)
        outcomes[result.kind] += 1
        if result.kind == "bug":
            bugs.append(f"{kind} {' '.join(flags)}\n{result.output}")

    case()
    assert not bugs, "\n\n".join(bugs)
    return outcomes


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_random_overrides_train_or_are_refused(kind, record_property):
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    for name, count in fuzz(kind, math.ceil(CASES / len(KINDS))).items():
        record_property(name, count)


# Overrides that once raised, hung, or were accepted without effect.
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
        "diffusion.time_sampling=log_normal(std=0)",
        "diffusion.time_sampling=importance(horizon=0)",
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
        "train.num_preview_samples=2147483647",
        "parallel.num_devices=-1",
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
    "vqvae": ("codebook.commitment=nan", "codebook.kind=fsq codebook.levels=(2.5,3,3,3)"),
    "vqvae2": ("model.coarser_factors=(0,)", "loss.perceptual_file=@"),
    "vqgan": (
        "adversarial.channels=0",
        "adversarial.weight=nan",
        "model.multipliers=(1.5,)",
        "model.multipliers=()",
        "data.image_size=3",
    ),
    "dvae": ("model.groups=0", "codebook.temperature=nan", "loss.kl_weight=nan", "loss.kl_steps=-1"),
    "collapse": ("pixelcnn.features=0",),
    "gan": (
        "model.latent=0",
        "discriminator.r1_gamma=nan",
        "train.discriminator.learning_rate=nan",
        "train.discriminator.learning_rate=1e30",
    ),
    "ddgan": ("mapping.layers=0", "mapping.latent=-1"),
    "clip": ("model.dimensions=0", "text.length=1000000", "data.image_size=7"),
    "upsampler": ("data.image_size=7",),
    "noised_clip": ("diffusion.downsample=8",),
    "inpainting": ("conditions.masked_image.full_mask_prob=2",),
}


@pytest.mark.parametrize(
    ("kind", "written"), [(kind, each) for kind, overrides in REFUSED.items() for each in overrides]
)
def test_bad_overrides_are_refused(kind, written):
    result = outcome(kind, [f"--config.{override}" for override in written.split()])
    assert result.kind == "refused", result.output
