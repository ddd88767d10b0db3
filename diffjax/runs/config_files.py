"""Reads config files and JSON, checks the types of fields, and compares configs.

A config file can name a part, a config that it depends on, by the part's file in the same folder or among the
packaged configs; the loaded config has the part's config in its place.
"""

import contextlib
import fnmatch
import json
import os
import re
import sys
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from diffjax import io
from diffjax.errors import UserError, unknown
from diffjax.runs import packaged
from diffjax.runs.config_fields import configs_package, documented_name
from diffjax.runs.packaged import CONFIGS

# Fields that may change when a run is resumed, as they do not affect the numbers of a step: intervals, the limit of
# skipped steps, places of data, devices, and settings of samplers (also for previews). Other devices (parallel.*)
# change the order of sums, so numbers agree up to rounding.
MUTABLE_FIELDS = (
    *("train.log_every", "train.sample_every", "train.checkpoint_every", "train.keep_last", "train.keep_every"),
    *("train.eval_every", "train.eval_batches", "train.ema_every"),
    *("train.max_consecutive_skips", "data.dir", "data.cache_gib", "data.workers", "parallel.", "sampler.", "rerank."),
)
_DEFAULTS = {
    "data.on_corrupt": "raise",
    "data.channels": 0,
    "data.fit": "center_crop",
    "data.num_classes": -1,
    "data.class_names": (),
    "data.cache_gib": -1.0,
    "data.workers": 0,
    "diffusion.rescale_timesteps": False,
    "diffusion.next_times": "clean",
    "diffusion.metric": "l2",
    "diffusion.coupling": "independent",
    "diffusion.teacher_guidance": 1.0,
    "teacher": "",
    "codebook.shared": False,
    "codebook.estimator": "straight_through",
    "codebook.entropy_weight": 0.1,
    "train.start": "",
    "train.start_fresh": (),
    "train.freeze": (),
    "train.optimizer": "adamw",
    "train.mup_base_width": 0,
    "train.ema_lengths": (),
    "train.ema_every": 0,
    "train.eval_every": 0,
    "train.eval_batches": 10,
    "train.generator.update_every": 1,
    "train.model.update_every": 1,
    "parallel.tensor": 1,
    "train.lora.rank": 0,
    "train.lora.alpha": 8.0,
    "train.lora.targets": ("*",),
}  # fields that old configs lack
# Fields of networks that change memory and time, not the results: configs that lack them can be overridden, too.
_OPTIONAL = {
    "model.remat": "none",
    "model.scan_blocks": False,
    "image_encoder.remat": "none",
    "text_encoder.remat": "none",
}
# Values of fields that were true or false, as in stored configs. Digests have the former values.
_FORMER_VALUES = {"model.remat": {"none": False, "blocks": True}}
_PART_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_RESERVED = (
    "averages",
    "checkpoints",
    "events",
    "failed",
    "results",
    "samples",
    "wandb",
)  # folders of a run, not valid as names of parts
_TYPES = {
    "seed": int,
    "system": str,
    "dtype": str,
    "data": ConfigDict,
    "data.name": str,
    "data.dir": str,
    "data.split": str,
    "data.image_size": int,
    "data.background": str,
    "data.flip": bool,
    "data.on_corrupt": str,
    "data.channels": int,
    "data.fit": str,
    "data.num_classes": int,
    "data.class_names": tuple,
    "data.cache_gib": float,
    "data.workers": int,
    "model": ConfigDict,
    "diffusion": ConfigDict,
    "sampler": ConfigDict,
    "parallel": ConfigDict,
    "parallel.mode": str,
    "parallel.num_devices": int,
    "parallel.fsdp": int,
    "parallel.tensor": int,
    "parts": ConfigDict,
    "train": ConfigDict,
    "train.start": str,
    "train.start_fresh": tuple,
    "train.freeze": tuple,
    "train.optimizer": str,
    "train.mup_base_width": int,
    "train.ema_lengths": tuple,
    "train.ema_every": int,
    "train.generator.update_every": int,
    "train.model.update_every": int,
    "train.lora": ConfigDict,
    "train.lora.rank": int,
    "train.lora.alpha": float,
    "train.lora.targets": tuple,
    "train.steps": int,
    "train.batch_size": int,
    "train.accumulate": int,
    "train.learning_rate": float,
    "train.warmup_steps": int,
    "train.learning_rate_schedule": str,
    "train.ema_decay": float,
    "train.log_every": int,
    "train.eval_every": int,
    "train.eval_batches": int,
    "train.sample_every": int,
    "train.num_preview_samples": int,
    "train.checkpoint_every": int,
    "train.keep_last": int,
    "train.keep_every": int,
    "train.max_consecutive_skips": int,
}
_KINDS = {  # in words
    ConfigDict: "a section",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a tuple, such as ('label',)",
}
_PLAIN = (bool, int, float, str, types.NoneType)


def load_file(path: str) -> ConfigDict:
    """Runs a config file's get_config(), and those of the files that it names as parts; or reads a run's config.json.

    The file is executed anew at each call, from its source. The config of a run refers to the run's trained parts.

    Args:
      path: file, or name of a packaged config; and after a colon the argument of get_config(), as in
        configs/vqvae.py:cifar10 and vqvae:cifar10. A file that does not exist is looked up in the package.

    Returns:
      The config, locked, with plain values and parts that are configs.

    Raises:
      UserError: the file cannot be read or fails, which the message locates by file and line, or what it returns is
        not a config.
    """
    file, colon, argument = path.partition(":")
    return _load_file(f"{packaged.find('configs', file)}{colon}{argument}", ())


def _load_file(path: str, outer: tuple[str, ...]) -> ConfigDict:
    """Loads a config file; `outer` has the files that it is a part of."""
    file, colon, argument = path.partition(":")
    if os.path.realpath(file) in outer:
        raise UserError(f"--config={path}: the file is a part of itself; remove it from its parts")
    with _located(path, file), configs_package(os.path.dirname(file)):
        with open(file, "rb") as opened:
            source = opened.read()
        if file.endswith(".json"):  # of a run
            if colon:
                raise UserError(f"--config={path}: a run's config has no variants; remove :{argument}")
            return _run_config(path, source)
        module = types.ModuleType(f"diffjax_config_{Path(file).stem}")
        module.__file__ = file
        sys.modules[module.__name__] = module  # dataclasses look up their module
        exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
        if not callable(getattr(module, "get_config", None)):
            raise UserError(f"cannot read --config={path}: {file} has no function get_config(); define it")
        config = module.get_config(*[argument] if colon else [])
        if isinstance(config, FrozenConfigDict):
            config = ConfigDict(config)
        if not isinstance(config, ConfigDict):
            raise UserError(
                f"cannot read --config={path}: get_config() returns {type(config).__name__}; it must return a "
                "ml_collections.ConfigDict"
            )
        _check_form(config, f"cannot read --config={path}: ", files=True)
    for name, part in config.get("parts", {}).items():
        if isinstance(part, str):
            with config.parts.unlocked(), config.parts.ignore_type():
                folder = os.path.dirname(file)
                if not os.path.exists(os.path.join(folder, part.partition(":")[0])):
                    folder = CONFIGS
                config.parts[name] = _load_file(os.path.join(folder, part), (*outer, os.path.realpath(file)))
    return config.lock()


def _run_config(path: str, source: bytes) -> ConfigDict:
    """Returns the config of a run's config.json, where `@name` of a trained part is the folder of the part."""
    try:
        config = from_json(source)
    except (UserError, ValueError) as error:
        raise UserError(f"cannot read --config={path}: {error}; pass the config.json of a run") from error
    for name in list(config.get("parts", {})):
        folder = Path(path).parent / name
        if (folder / "config.json").exists():
            for field, value in flatten(config).items():
                if value == f"@{name}" and not field.startswith("parts."):
                    _set(config, field, str(folder))
            del config.parts[name]
    if "parts" in config and not config.parts:
        del config.parts
    for field, value in flatten(config).items():
        names = {former: name for name, former in _FORMER_VALUES.get(documented_name(field), {}).items()}
        if value in names:
            with config.ignore_type():
                _set(config, field, names[value])
    return config.lock()


@contextlib.contextmanager
def _located(path: str, file: str) -> Iterator[None]:
    """Turns any exception of a config file into a UserError of one line that names the file and the line."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except OSError as error:
        if error.filename != file:
            raise UserError(_failure(path, file, error)) from error
        raise UserError(f"cannot read --config={path}: {error.strerror}; pass the path of a config file") from error
    except BaseException as error:  # also SystemExit
        raise UserError(_failure(path, file, error)) from error


def _failure(path: str, file: str, error: BaseException) -> str:
    """Returns the message for an exception of a config file, or of a config that it imports."""
    folders = (os.path.abspath(os.path.dirname(file)), str(CONFIGS))
    places = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
        or (os.path.dirname(frame.filename) in folders and os.path.basename(frame.filename) != "common.py")
    ]
    text = str(error)
    if isinstance(error, SyntaxError) and error.filename == file:
        places, text = [(file, error.lineno)], error.msg
    where = "{}, line {}: ".format(*places[-1]) if places and places[-1][1] else ""
    first = ": ".join([type(error).__name__, *text.strip().splitlines()[:1]])
    return f"cannot read --config={path}: {where}{first[:300]}; correct the file"


def _check_form(config: ConfigDict, where: str, *, files: bool = False) -> None:
    """Checks the names of parts and the types of fields.

    Args:
      where: start of the error message.
      files: whether a part may be the name of a config file.

    Raises:
      UserError: a part's name is not an identifier, or a field has another type.
    """
    for name, value in flatten(config).items():
        if not all(isinstance(item, _PLAIN) for item in _leaves((value,))):
            raise UserError(f"{where}{name}={value!r:.80}: must be a plain value or a tuple of plain values")
    for name, kind in _TYPES.items():
        value = _field(config, name)
        fits = isinstance(value, int | float if kind is float else kind)
        if isinstance(value, bool) and kind is not bool:
            fits = False  # Python's bool is an int
        if value is not ... and not fits:
            raise UserError(f"{where}{name}={_shown(value)}: must be {_KINDS.get(kind, 'text')}")
    for name, part in config.get("parts", {}).items():
        if not _PART_NAME.fullmatch(name) or name in _RESERVED:
            raise UserError(
                f"{where}parts.{name}: the name of a part is the name of its folder; use letters, digits, '_' and '-', "
                f"and none of {', '.join(_RESERVED)}"
            )
        if isinstance(part, ConfigDict):
            _check_form(part, f"{where}parts.{name}: ", files=files)
        elif not (files and isinstance(part, str)):
            raise UserError(f"{where}parts.{name}={_shown(part)}: must be a config" + " or its file" * files)


def _shown(value: Any) -> str:
    return f"{value.to_dict() if isinstance(value, ConfigDict) else value!r:.80}"


def _leaves(values) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _leaves(value)
        else:
            yield value


def _field(config: ConfigDict, name: str) -> Any:
    """Returns the value of a dotted name, `...` if the config lacks it."""
    section, _, rest = name.partition(".")
    value = config.get(section, ...)
    return value if not rest else _field(value, rest) if isinstance(value, ConfigDict) else ...


def to_json(config: ConfigDict) -> str:
    return io.to_json(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str | bytes) -> ConfigDict:
    """Returns the config of `to_json`; JSON lists become tuples.

    Infinity and NaN are accepted, as earlier versions wrote them, although strict JSON lacks them.

    Raises:
      ValueError: the text is not JSON.
      UserError: it is not a config, or names of parts or types of fields are not valid.
    """
    try:
        value = io.from_json(text)
    except ValueError as error:
        if "is not JSON" not in str(error):
            raise
        value = json.loads(text)
    if not isinstance(value, dict):
        raise UserError(f"not a config: it must be an object of fields, not {type(value).__name__}")

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: restore(child) for name, child in value.items()}
        return tuple(map(restore, value)) if isinstance(value, list) else value

    try:
        config = ConfigDict(restore(value))
        _check_form(config, "")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"not a config: {reason[:200]}") from error
    return config


def checked(config: ConfigDict) -> ConfigDict:
    """Returns a copy of a config that was built in Python, with plain values.

    Raises:
      UserError: names of parts or types of fields are not valid.
    """
    _check_form(config, "config: ")
    return from_json(to_json(config)).lock()


def with_optional_fields(config: ConfigDict, names: Iterable[str]) -> ConfigDict:
    """Returns the config with defaults of those `names` that it lacks and that are optional fields of networks.

    A network that does not have the field refuses it when it is built.
    """
    known = flatten(config)
    sections = {name.rpartition(".")[0] for name in known}
    added = {name: _OPTIONAL.get(documented_name(name)) for name in names if name not in known}
    added = {name: value for name, value in added.items() if value is not None and name.rpartition(".")[0] in sections}
    if not added:
        return config
    config = config.copy_and_resolve_references().unlock()
    for name, value in added.items():
        _set(config, name, value)
    return config.lock()


def with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of the config with other values.

    Args:
      fields: values by dotted name, such as {"train.steps": 1000}; `*` in a name sets all fields that match.

    Raises:
      UserError: a field that the config does not have, or a value of another type. Fields of `sampler` may be new: the
        sampler's settings are checked when its settings are made.
    """
    copy = with_optional_fields(config, fields).copy_and_resolve_references().unlock()
    known = flatten(copy)
    for pattern, value in fields.items():
        for name in fnmatch.filter(known, pattern) if "*" in pattern else [pattern]:
            field = next((field for field in known if field.startswith(f"{name}.")), None)
            if field and not isinstance(value, Mapping | ConfigDict):
                raise UserError(f"{name} is a section; set one of its fields, such as {field}")
            if name not in known and not name.startswith("sampler."):
                raise unknown("config field", name, known)
            try:
                _set(copy, name, value)
            except (TypeError, KeyError, ValueError) as error:
                expected = _KINDS.get(type(known.get(name)), "text")
                raise UserError(f"{name}={_shown(value)}: must be {expected}") from error
    return copy.lock()


def _set(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a field by its dotted name. Creates missing subsections, but no missing section."""
    section, _, field = name.rpartition(".")
    if "." in section and config.get(section) is None:
        _set(config, section, ConfigDict())
    target: Any = config[section] if section else config
    target[field] = value


def flatten(config: ConfigDict, prefix: str = "") -> dict:
    """Returns all fields by dotted name: {"train.steps": 1000, ...}."""
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name: value}
    return flat


def training_fields(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields, by dotted name, that determine the numbers of a step, without those of parts.

    `train.steps` is omitted: its effect depends on the learning rate schedule, see `resume.same_rates`.
    """
    return {
        name: value
        for name, value in _comparable(config).items()
        if not name.startswith((*MUTABLE_FIELDS, "parts."))
        and name != "train.steps"
        and _DEFAULTS.get(name, ...) != value
    }


def _comparable(config: ConfigDict) -> dict[str, Any]:
    """Returns all fields by dotted name as they are read from config.json, with former values in place of new ones."""
    flat = flatten(from_json(to_json(config)))
    return {
        name: former.get(value, value) if (former := _FORMER_VALUES.get(documented_name(name))) else value
        for name, value in flat.items()
    }


def different_fields(*configs: ConfigDict) -> dict[str, tuple[Any, ...]]:
    """Returns the value of each config for every field that differs, by dotted name, of parts too; None: missing."""
    flat = [{**_DEFAULTS, **_comparable(config)} for config in configs]
    values = {name: tuple(one.get(name) for one in flat) for name in sorted(set().union(*flat))}
    return {name: of_field for name, of_field in values.items() if any(value != of_field[0] for value in of_field)}


def changed_fields(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns (old, new) of every field that differs, by dotted name; None: a missing field. Parts are omitted."""
    return {
        name: (before, after)
        for name, (before, after) in different_fields(old, new).items()
        if not name.startswith("parts.")
    }
