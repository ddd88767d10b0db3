"""Configs: files that make them, their fields by dotted name, JSON, and the parts that one names.

A config may have a section `parts`: configs of runs that it stands on, which are trained before it into folders of its
workdir. A file names one by the file of its config, which lies beside it. A field that names a run, such as `codec`,
refers to a part by `@name`.
"""

import os
from pathlib import Path

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from diffjax import io
from diffjax.errors import UserError

# Fields that a continued run may change: how long, how often it reports, where the data and the devices are, and how
# samples are drawn. None of them changes what a step computes.
_MAY_CHANGE = ("train.steps", "train.log_every", "train.sample_every", "train.checkpoint_every", "train.keep_last",
               "train.keep_every", "train.skip_limit", "data.dir", "data.corrupt", "parallel.", "sampler.",
               "rerank.")  # fmt: skip


def load_file(path: str) -> ConfigDict:
    """Runs a config file's get_config(), and those of the files that it names as parts.

    `path` may end in what get_config() is given, as in configs/vqvae.py:cifar10. Raises UserError where it cannot.
    """
    holder = absl_flags.FlagValues()
    config_flags.DEFINE_config_file("config", path, flag_values=holder, sys_argv=[""])
    try:
        holder([""])
        flatten(holder.config)  # a file that could not be loaded says so when it is used
    except (OSError, SyntaxError, AttributeError, NameError, TypeError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise UserError(f"cannot read --config={path}: {reason}") from error
    config = holder.config
    for name, part in config.get("parts", {}).items():
        if isinstance(part, str):
            with config.parts.unlocked(), config.parts.ignore_type():
                config.parts[name] = load_file(os.path.join(os.path.dirname(path), part))
    return config


def to_json(config: ConfigDict) -> str:
    return io.to_json(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config of `to_json`: JSON's lists were tuples."""

    def restore(value):
        if isinstance(value, dict):
            return {name: restore(child) for name, child in value.items()}
        return tuple(map(restore, value)) if isinstance(value, list) else value

    return ConfigDict(restore(io.from_json(text)))


def flatten(config: ConfigDict, prefix: str = "") -> dict:
    """{"train.steps": 1000, ...}: every field by its dotted name."""
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name: value}
    return flat


def training_key(config: ConfigDict) -> str:
    """A hash of what determines the parameters that training comes to."""
    parts = {f"parts.{name}": training_key(part_config(config, name)) for name in part_names(config)}
    fields = {**determining(config), "train.steps": config.get("train", {}).get("steps", 0), **parts}
    return io.short_hash(io.to_json(fields, sort_keys=True))


def determining(config: ConfigDict) -> dict:
    """The fields of a run, without its parts', that may not change once it has begun."""
    flat = flatten(from_json(to_json(config)))
    return {name: value for name, value in flat.items() if not name.startswith((*_MAY_CHANGE, "parts."))}


def part_names(config: ConfigDict) -> list[str]:
    """The parts to train, each behind those that it refers to: those that fields refer to, themselves or by others.

    So none in whose place a field names another run, or nothing. Raises UserError where they refer to one another.
    """
    left, ordered = _needed(config, _referred(config)), []
    while left:
        ready = [name for name, others in left.items() if not left.keys() & others]
        if not ready:
            raise UserError(f"the parts {', '.join(left)} stand on one another: one has to be trained first")
        ordered += sorted(ready)
        left = {name: others for name, others in left.items() if name not in ready}
    return ordered


def part_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config of a part; where data and devices are is the same for all."""
    part = ConfigDict(config.parts[name].copy_and_resolve_references()).unlock()
    part.data.dir, part.parallel = config.data.dir, config.parallel
    for field, value in part.items():  # what stands in the place of a part beside it does so for all
        if isinstance(value, str) and value.startswith("@") and value[1:] not in part.get("parts", {}):
            stands_in = config.get(value[1:]) or "@"
            part[field] = value if stands_in.startswith("@") else stands_in
    return part.lock()


def part_alone(config: ConfigDict, name: str) -> ConfigDict:
    """The config of a part as a run of its own: what it refers to beside it is among its own parts."""
    part = part_config(config, name)
    if beside := {other: part_config(config, other) for other in _needed(config, _beside(part))}:
        with part.unlocked():
            part.parts = ConfigDict({**part.get("parts", {}), **beside})
    return part


def referred_run(config: ConfigDict, field: str, home: Path | None) -> Path:
    """The folder of the run that a field names: `@name` is a part of the config, or one beside it, as seen from the
    workdir `home`. Raises UserError for what names none."""
    value = flatten(config)[field]
    if not value.startswith("@"):
        return Path(value)
    if value == "@":
        raise UserError(f"{field}=@ names no part: write its name behind it, or the folder of a run")
    if home is None:
        raise UserError(
            f"{field}={value} is trained with the run: name the folder of one that is, --config.{field}=RUN"
        )
    return (home if value[1:] in config.get("parts", {}) else home.parent) / value[1:]


def _referred(config: ConfigDict) -> set[str]:
    """The parts that fields refer to, other than those of parts."""
    return {
        value[1:]
        for field, value in flatten(config).items()
        if isinstance(value, str) and value.startswith("@") and not field.startswith("parts.")
    }


def _beside(part: ConfigDict) -> set[str]:
    """The parts beside it that a part refers to."""
    return _referred(part) - set(part.get("parts", {}))


def _needed(config: ConfigDict, names: set[str]) -> dict[str, set[str]]:
    """Of the parts that are named, and of all that they stand on: which ones each refers to."""
    parts, needed = set(config.get("parts", {})), {}
    left = names & parts
    while left:
        name = left.pop()
        needed[name] = _beside(part_config(config, name)) & parts
        left |= needed[name] - needed.keys()
    return dict(sorted(needed.items()))
