"""What a config names, opened: its data, its system on the parts that it stands on; and `load`, a trained run."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffjax import data, models
from diffjax.data import tokenizer
from diffjax.data.tokenizer import Tokenizer
from diffjax.errors import UserError
from diffjax.models import clip as clip_system
from diffjax.nn.pretrained import clip_checkpoint, efficientnet
from diffjax.runs import checkpoints, exported_weights
from diffjax.runs.config_files import part_config, referred_run
from diffjax.runs.workdir import Workdir
from diffjax.typing import Clip, Codec, ImageSpec, System, Variables


def image_spec(config: ConfigDict) -> ImageSpec:
    """What the system must know of the config's data set; touches no disk."""
    return data.spec(config.data.name, config.data.image_size, config.data.background)


def open_source(config: ConfigDict, split: str):
    """The config's data set, one split of it. Raises UserError where it is not prepared."""
    c = config.data
    return data.open_source(
        c.name,
        directory=c.dir,
        split=split,
        image_size=c.image_size,
        background=c.background,
        corrupt=c.get("corrupt", "raise"),
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, opened: what every verb after training needs."""

    workdir: Workdir
    config: ConfigDict
    spec: ImageSpec
    system: System
    variables: Variables  # averaged parameters, and those of the parts it stands on
    step: int

    @property
    def parameters(self) -> int:
        """How many were trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

    @property
    def codec(self) -> Codec:
        """The run as a frozen autoencoder. Raises UserError where it is none."""
        if self.system.codec is None:
            raise UserError(f"{self.workdir.path} is a run of system={self.config.system}, which is no autoencoder")
        return self.system.codec(self.variables)

    @property
    def clip(self) -> Clip:
        """The run as a frozen CLIP. Raises UserError where it is none."""
        if self.system.clip is None:
            raise UserError(f"{self.workdir.path} is a run of system={self.config.system}, which is no CLIP")
        return self.system.clip(self.variables)

    @functools.cached_property
    def config_changes(self) -> list[dict[str, Any]]:
        """Changes of the config while it trained, as config_changes.jsonl has them, that changed its numbers."""
        return [change for change in self.workdir.read_config_changes() if change["changes_numbers"]]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Of the text that the run reads; None where it reads none."""
        return tokenizer_of(self.workdir.path) if self.system.text else None


def build_system(config: ConfigDict, home: Path | None = None, *, training: bool = False) -> System:
    """The system of a config, on the trained parts that it names; what only training needs is left out.

    `home` is the run's folder, which references to parts are seen from. Raises UserError for what does not exist or
    does not fit.
    """
    spec, parts = image_spec(config), {}
    for name, open_part in _OPEN.items():
        if config.get(name):
            there = referred_run(config, name, home)
            if config[name].startswith("@") and not Workdir(there).config.exists():
                raise UserError(
                    f"{there}, the {name} of {home}, is not trained yet: "
                    f"`python launch.py train --workdir={there.parent}` goes on with it"
                )
            parts[name] = open_part(there, spec)
    check_tokenizers({name: referred_run(config, name, home) for name, part in parts.items() if part[0].text})
    if training and config.get("loss", {}).get("perceptual_file"):
        try:
            parts["features"] = efficientnet.load(config.loss.perceptual_file)
        except UserError as error:
            raise UserError(f"loss.perceptual_file: {error}") from error
    return models.build(config, spec, **parts)


def blueprint(config: ConfigDict, beside: ConfigDict | None = None, home: Path | None = None) -> System:
    """The system of a config before its parts are trained: their variables are shapes, and nothing is computed.

    What is no part of the config is one of `beside`, of which it is itself a part, or lies beside its folder `home`.

    Raises UserError for what does not exist or does not fit; what is said of runs on disk, `build_system` finds.
    """
    spec, parts = image_spec(config), {}
    for name in _OPEN:
        value = config.get(name, "")
        if value.startswith("@"):
            around = config if value[1:] in config.get("parts", {}) else beside
            if around is None and home and (there := referred_run(config, name, home)).exists():
                parts[name] = _OPEN[name](there, spec)
                continue
            if around is None or value[1:] not in around.get("parts", {}):
                raise UserError(f"{name}={value}: the config has no part {value[1:]}")
            part = part_config(around, value[1:])
            _check_images(f"{name}={value}", image_spec(part), spec)
            system = blueprint(part, around)
            shapes = jax.eval_shape(system.objective.init, jax.random.key(0))
            parts[name] = _with_settings(system, part), {**shapes, "frozen": system.frozen}
        elif value:
            parts[name] = _OPEN[name](Path(value), spec)
    return models.build(config, spec, **parts)


def _open_codec(path: Path, spec: ImageSpec) -> tuple[System, Variables]:
    """A frozen autoencoder. Raises UserError where it is none, or one of other images."""
    run = load(path)
    if run.system.codec is None:
        raise UserError(f"codec={path} is a run of system={run.config.system}, which is no autoencoder")
    _check_images(f"codec={path}", run.spec, spec)
    return run.system, run.variables


def open_clip(path: str | os.PathLike, spec: ImageSpec) -> tuple[System, Variables]:
    """A frozen CLIP for images of `spec`: a run, or a folder of published weights, which takes images of any size.

    Raises UserError where it is neither, or a run of other images.
    """
    if clip_checkpoint.is_published(path):
        return clip_system.published(path)
    run = load(path)
    if run.system.clip is None:
        raise UserError(f"clip={path} is a run of system={run.config.system}, which is no CLIP")
    _check_images(f"clip={path}", run.spec, spec)
    return run.system, run.variables


def _open_stage(path: Path, spec: ImageSpec) -> tuple[System, Variables]:
    """A stage of a chain. Raises UserError where there is none, or one of other images."""
    run = load(path)
    _check_images(f"the stage {path}", run.spec, spec)
    return _with_settings(run.system, run.config), run.variables


def _with_settings(system: System, config: ConfigDict) -> System:
    """A system whose samples are drawn as its own config says, but for overrides."""
    return system._replace(plan=functools.partial(system.plan, config.sampler)) if system.plan else system


def check_tokenizers(paths: Mapping[str, Path]) -> None:
    """Raises UserError where runs that stand on one another read different tokens."""
    if len(paths) < 2:
        return  # nothing to compare, and a file less to read
    read = {name: tokenizer_of(path) for name, path in paths.items()}
    for name, other in itertools.pairwise(read):
        if read[name].bpe.to_str() != read[other].bpe.to_str():
            raise UserError(
                f"{name}={paths[name]} and {other}={paths[other]} read text by different tokenizers, of "
                f"{read[name].vocabulary} and {read[other].vocabulary} tokens: train both with one"
            )


def tokenizer_of(path: str | os.PathLike) -> Tokenizer:
    """That of a run, or of a folder of published weights. Raises UserError where there is none."""
    return tokenizer.load(path if clip_checkpoint.is_published(path) else Workdir(path).tokenizer)


def _check_images(what: str, theirs: ImageSpec, ours: ImageSpec) -> None:
    if theirs[:2] != ours[:2]:
        raise UserError(
            f"{what} is of {theirs.size}x{theirs.size} images of {theirs.channels} channels, and these are "
            f"{ours.size}x{ours.size} of {ours.channels} (data.name, data.image_size): they must agree"
        )


_STAGES = ("base", "prior", "ar_prior", "pca", "decoder", "upsampler", "upsampler_2", "noised_clip")
_OPEN = {"codec": _open_codec, "clip": open_clip} | dict.fromkeys(_STAGES, _open_stage)  # by a config's field


def load(path: str | os.PathLike, step: int | None = None) -> Run:
    """Opens the run at `path` with its averaged parameters of `step` (None: the newest checkpoint).

    The run may be training meanwhile.

    Raises UserError where there is no run, or no such checkpoint, or a file of it is damaged.
    """
    workdir = Workdir(path)
    config = workdir.read_config()
    try:
        spec = image_spec(config)
        system = build_system(config, workdir.path)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"{workdir.config}: no system can be built of it ({type(error).__name__}: {reason}); restore the file"
        ) from error
    if not system.objective.losses:  # a chain of trained stages
        if step is not None:
            raise UserError(f"--checkpoint={step}: {path} is a chain, which has no checkpoints; leave it out")
        return Run(workdir, config, spec, system, {"params": {}, "frozen": system.frozen}, 0)
    template = jax.eval_shape(system.objective.init, jax.random.key(0))
    if workdir.weights.exists():
        variables, exported = (
            exported_weights.load(workdir.weights, template),
            exported_weights.step_of(workdir.weights),
        )
        if step not in (None, exported):
            raise UserError(f"{path} is exported from step {exported}, and has no other: leave out --checkpoint")
        return Run(workdir, config, spec, system, {**variables, "frozen": system.frozen}, exported)
    if not workdir.checkpoints.exists():
        raise UserError(f"{path} has no checkpoint yet: continue its training with launch.py train --workdir={path}")
    variables, step = checkpoints.read(workdir.checkpoints, template, step)
    return Run(workdir, config, spec, system, {**variables, "frozen": system.frozen}, step)
