"""A run on disk: its config, its records, its checkpoints; and `load`, which opens a trained one."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import jax
from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from diffjax import data, systems
from diffjax.errors import UserError
from diffjax.nn import efficientnet
from diffjax.train.checkpoints import Checkpoints
from diffjax.typing import Codec, ImageSpec, System, Variables

# Fields that a continued run may change: how long, how often it reports, where the data and the devices are, and how
# samples are drawn. None of them changes what a step computes.
_MAY_CHANGE = ("train.steps", "train.log_every", "train.sample_every", "train.checkpoint_every", "train.keep_last",
               "train.keep_every", "data.dir", "parallel.", "sampler.")  # fmt: skip


class Workdir:
    """The layout of a run's folder."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.results = self.path / "results"
        self.error = self.path / "error.txt"  # why a run that was trained with others ended

    def create(self) -> None:
        """Makes the folders. Raises UserError where the path cannot be written."""
        try:
            for folder in (self.path, self.samples, self.results):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise UserError(f"cannot write to --workdir={self.path} ({reason}): choose another folder") from error

    def read_config(self) -> ConfigDict:
        """The config the run was started with. Raises UserError where there is none."""
        if not self.config.exists():
            raise UserError(f"{self.path} is not a run (it has no config.json): train one with launch.py train")
        try:
            return from_json(self.config.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{self.config} is not JSON ({error}): restore it, or choose another folder") from error

    def check_config(self, config: ConfigDict) -> None:
        """Raises UserError, naming the fields, if `config` differs from the run's in more than what may change."""
        stored, asked = (flatten(from_json(to_json(c))) for c in (self.read_config(), config))
        differing = [
            f"{name} was {stored.get(name)!r}, now {asked.get(name)!r}"
            for name in sorted(stored.keys() | asked.keys())
            if stored.get(name) != asked.get(name) and not name.startswith(_MAY_CHANGE)
        ]
        if differing:
            raise UserError(
                f"{self.path} was started with another config: {'; '.join(differing)}. Use another --workdir, "
                "or --overwrite to continue this one with the new config"
            )

    def write_config(self, config: ConfigDict) -> None:
        whole = self.config.with_suffix(".new")  # then renamed: a kill leaves the old one or the new one
        whole.write_text(to_json(config))
        whole.replace(self.config)


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config of `to_json`: JSON's lists were tuples."""

    def restore(value):
        if isinstance(value, dict):
            return {name: restore(child) for name, child in value.items()}
        return tuple(map(restore, value)) if isinstance(value, list) else value

    return ConfigDict(restore(json.loads(text)))


def load_file(path: str) -> ConfigDict:
    """Runs a config file's get_config(). Raises UserError where it cannot."""
    holder = absl_flags.FlagValues()
    config_flags.DEFINE_config_file("config", path, flag_values=holder, sys_argv=[""])
    try:
        holder([""])
        flatten(holder.config)  # a file that could not be loaded says so when it is used
        return holder.config
    except (OSError, SyntaxError, AttributeError, NameError, TypeError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise UserError(f"cannot read --config={path}: {reason}") from error


def flatten(config: ConfigDict, prefix: str = "") -> dict:
    """{"train.steps": 1000, ...}: every field by its dotted name."""
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name: value}
    return flat


def training_key(config: ConfigDict) -> str:
    """A hash of what determines the parameters that training comes to."""
    free = tuple(name for name in _MAY_CHANGE if name != "train.steps")
    fields = {name: value for name, value in flatten(from_json(to_json(config))).items() if not name.startswith(free)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def image_spec(config: ConfigDict) -> ImageSpec:
    """What the system must know of the config's data set; touches no disk."""
    return data.spec(config.data.name, config.data.image_size, config.data.background)


def open_source(config: ConfigDict, split: str):
    """The config's data set, one split of it. Raises UserError where it is not prepared."""
    c = config.data
    return data.open_source(c.name, directory=c.dir, split=split, image_size=c.image_size, background=c.background)


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


def build_system(config: ConfigDict, *, training: bool = False) -> System:
    """The system of a config, on the trained parts that the config names; what only training needs is left out.

    Raises UserError for what does not exist or does not fit.
    """
    spec, parts = image_spec(config), {}
    if config.get("codec"):
        parts["codec"] = _open_codec(config, spec)
    if training and config.get("loss", {}).get("perceptual_file"):
        parts["features"] = efficientnet.load(config.loss.perceptual_file)
    return systems.build(config, spec, **parts)


def _open_codec(config: ConfigDict, spec: ImageSpec) -> tuple[System, Variables]:
    """The frozen autoencoder that a config names. Raises UserError where it is none, or one of other images."""
    run = load(config.codec)
    if run.system.codec is None:
        raise UserError(f"codec={config.codec} is a run of system={run.config.system}, which is no autoencoder")
    if run.spec[:2] != spec[:2]:
        raise UserError(
            f"codec={config.codec} was trained on {run.spec.size}x{run.spec.size} images of {run.spec.channels} "
            f"channels, and {config.data.name} here has {spec.size}x{spec.size} of {spec.channels}: they must agree"
        )
    return run.system, run.variables


def load(path: str | os.PathLike, step: int | None = None) -> Run:
    """Opens the run at `path` with its averaged parameters of `step` (None: the last checkpoint).

    Raises UserError where there is no run, or no such checkpoint.
    """
    workdir = Workdir(path)
    config = workdir.read_config()
    spec = image_spec(config)
    system = build_system(config)
    if not workdir.checkpoints.exists():
        raise UserError(f"{path} has no checkpoint yet: continue its training with launch.py train --workdir={path}")
    checkpoints = Checkpoints(workdir.checkpoints)
    template = jax.eval_shape(system.objective.init, jax.random.key(0))
    variables = checkpoints.restore_ema(template, step)
    step = checkpoints.latest_step() if step is None else step
    checkpoints.close()
    return Run(workdir, config, spec, system, {**variables, "frozen": system.frozen}, step)
