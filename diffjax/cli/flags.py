"""Flags shared by the verbs: parsing, validation and help texts."""

import contextlib
import dataclasses
import math
import re
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from diffjax.errors import UserError, unknown, validate_integer
from diffjax.parsing import entries, number
from diffjax.runs import packaged
from diffjax.runs.config_fields import documented_fields, documented_name
from diffjax.runs.config_files import flatten, load_file, with_optional_fields

Flags = absl_flags.FlagValues
MAX_COUNT = 10_000_000  # upper bound of counts, such as the number of samples
# Flags with lists of values, separated by commas; so are the sampling settings (settings.py).
_LISTS = ("against", "cases", "communication", "components", "image", "lpips", "metric", "metrics", "slurm")
# Fields that are tuples of text, also when they are empty.
_TEXT_TUPLES = ("class_names", "masks", "freeze", "start_fresh", "targets")
# Fields of `data` that select a data set and how it is read; sizes and flips differ between parts.
_SHARED_DATA = (
    *("name", "split", "background", "fit", "channels", "num_classes", "class_names"),
    *("number", "on_corrupt", "cache_gib", "workers"),
)
# Flags by purpose, in the order of the help text. The groups of sampling are those of verbs that sample.
GUIDANCE_FLAGS = (  # of classifier-free guidance
    *("guidance", "guidance_rescale", "guidance_low", "guidance_high"),
    *("guidance_rule", "guidance_schedule", "guidance_channels", "first_condition", "first_scale"),
)
# Flags that take a URL, with the verbs where they do (None: all); and texts, which may contain one.
_URL_FLAGS = {
    "workdir": ("train", "sample", "sweep", "evaluate", "optimize_grid"),
    **dict.fromkeys(("data_dir", "clip", "codec", "classifier", "weak", "features")),
    **dict.fromkeys(("prompt", "negative_prompt", "base_prompt", "template", "source")),
}
_GROUPS = {
    "run": (
        *("workdir", "config", "checkpoint", "ema_length", "data_dir"),
        *("logger", "allow_config_change", "print_config"),
    ),
    "processes": ("coordinator", "processes", "process", "wait"),
    "samples": ("num", "seed", "batch_size", "label", "prompt", "prompts", "negative_prompt", "best_of", "clip"),
    "sampling": (
        *("sampler", "grid", "schedule", "steps", "eta", "threshold", "temperature", "brownian"),
        *("cache_interval", "cache_threshold", "cache_branch_id"),
        *("top_k", "top_p", "truncation", "prior", "candidates", "augmentation", "number"),
    ),
    "guidance": (
        *GUIDANCE_FLAGS,
        *("classifier", "classifier_scale", "weak", "weak_scale", "clip_scale"),
        *("perturbation", "perturbed_scale"),
    ),
    "editing": (
        *("image", "mask", "strength", "resample_steps", "interpolate", "invert"),
        *("measure", "measure_noise", "inverse"),
        *("initial_image", "keep_fraction", "base_prompt", "components"),
    ),
    "output": ("out", "from", "csv", "recompute"),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The parsed command line. Each flag is an attribute.

    Attributes:
      values: all flags; those that are not on the command line have their defaults.
      overrides: config overrides, unparsed.
      given_flags: names of the flags on the command line.
      positional: arguments without a name.
    """

    values: Flags
    overrides: Sequence[str]
    given_flags: frozenset[str] = frozenset()
    positional: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the values of all flags by name."""
        return self.values.flag_values_dict()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.values, name)


def define_workdir(flags: Flags, *, url: bool = False) -> None:
    """Defines --workdir; with `url` its help states that it may be a URL."""
    text = "folder of the run" + ", or its URL, such as gs://BUCKET/RUN (docs/reliability.md)" * url
    absl_flags.DEFINE_string("workdir", None, text, flag_values=flags)


def define_config(flags: Flags) -> None:
    absl_flags.DEFINE_string(
        "config",
        None,
        "config file, such as configs/digits.py, name of a packaged config, such as digits, or a run's config.json; "
        "any field of it can be overridden with --config.path.to.field=value",
        flag_values=flags,
    )


def define_sampling(flags: Flags, *, several_lengths: bool = False) -> None:
    """Defines the flags of all verbs that sample from a trained run."""
    define_ema_length(flags, several=several_lengths)
    for name, default, low, text in (
        ("seed", 0, 0, "seed of the first sample; sample i has SEED + i, for any batch size"),
        ("batch_size", 100, 1, "samples per batch; does not change the samples"),
    ):
        absl_flags.DEFINE_integer(name, default, text, low, 2**31 - 1, flag_values=flags)
    absl_flags.DEFINE_integer(
        "checkpoint", None, "training step of the checkpoint (default: the last)", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "data_dir", None, "folder or URL of data sets (default: data.dir of the run)", flag_values=flags
    )
    text = "float32 | bfloat16: type of the kernels in memory; bfloat16 needs half, and changes samples a little"
    absl_flags.DEFINE_string("weights_dtype", "float32", text, flag_values=flags)


def define_ema_length(flags: Flags, *, several: bool = False) -> None:
    define = absl_flags.DEFINE_string if several else absl_flags.DEFINE_float
    text = "relative length of the average of the weights (see launch.py ema --help)"
    define("ema_length", None, text, flag_values=flags)


def parse(flags: Flags, argv: Sequence[str], *, positional: bool = False) -> Arguments:
    """Parses a command line.

    Each flag is set at most once. Values and entries of lists must not be blank; numbers must be finite and in ASCII.

    Args:
      flags: flags that the verb defines.
      argv: the verb, then `--name=value`, `--name value`, or `--name` and `--noname` of a boolean. Config overrides
        have the same forms; `read_config` parses their values.
      positional: whether the verb takes arguments without a name.

    Raises:
      UserError: an unknown or repeated flag, or a value that the flag does not accept.
    """
    remaining, overrides, unnamed, parsed = list(argv[:0:-1]), [], [], {}
    while remaining:
        argument = remaining.pop()
        if positional and argument.strip() and not argument.startswith("-"):
            unnamed.append(argument)
            continue
        name, equals, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name:
            raise UserError(f"unexpected argument {argument!r}: flags are written --name=value")
        if name.startswith(("config.", "noconfig.")):
            if "config" not in flags:
                raise UserError(
                    f"{argument}: {argv[0]} takes no config overrides; it uses the config that the run was trained with"
                )
            if not equals and name.startswith("config.") and remaining and not remaining[-1].startswith("--"):
                argument = f"{argument}={remaining.pop()}"
            overrides.append(argument)
            continue
        positive = name.removeprefix("no")
        if name not in flags and not equals and positive in flags and flags[positive].boolean:
            name, equals, text = positive, "=", "false"
        if name not in flags:
            raise unknown("flag", name, flags)
        if not equals and flags[name].boolean:
            text = remaining.pop() if remaining and remaining[-1].lower() in ("true", "false") else "true"
        elif not equals:
            if not remaining or remaining[-1].startswith("--"):
                raise UserError(f"--{name} has no value; write --{name}=VALUE")
            text = remaining.pop()
        if name in parsed:
            raise UserError(f"--{name}={text}: the flag is set twice; set it once")
        parsed[name] = _validate(name, text, flags[name])
        _check_local(argv[0], name, text)
    try:
        flags([argv[0], *(f"--{name}={text}" for name, text in parsed.items())])
    except absl_flags.Error as error:
        raise UserError(str(error)) from error
    return Arguments(flags, overrides, frozenset(parsed), unnamed)


def _validate(name: str, text: str, flag: absl_flags.Flag) -> str:
    """Returns the text of a flag's value. Raises UserError if the flag does not accept it."""
    if not text.strip():
        raise UserError(f"--{name}={text}: the value is empty; set a value, or remove the flag")
    if name in _LISTS:
        entries(name, text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--{name}={text}: must be UTF-8; change the encoding") from error
    if flag.boolean and text.lower() not in ("true", "false", "t", "f", "1", "0"):
        raise UserError(f"--{name}={text}: must be true or false")
    parser: Any = flag.parser
    kind = {absl_flags.IntegerParser: int, absl_flags.FloatParser: float}.get(type(parser))
    if kind is None:
        return text
    low, high = parser.lower_bound, parser.upper_bound
    try:
        value = number(text, kind)
        if not (math.isfinite(value) and (low is None or low <= value) and (high is None or value <= high)):
            raise ValueError
    except ValueError:
        limits = (f" from {low:,}" if low is not None else "") + (f" to {high:,}" if high is not None else "")
        expected = "a whole number" if kind is int else "a finite number"
        raise UserError(f"--{name}={text}: must be {expected}{limits}") from None
    return str(value)


def _check_local(verb: str, name: str, text: str) -> None:
    """Raises UserError for a URL where a flag names a folder or file of this machine."""
    verbs = _URL_FLAGS.get(name, ())
    if verbs is None or verb in verbs or not re.search(r"(?:^|,)[a-z][a-z0-9+.-]*://", text):
        return
    supported = f" for {verb} (URLs are supported for {', '.join(verbs)})" if verbs else ""
    raise UserError(f"--{name}={text}: must be a local path{supported}; copy the files to or from the URL yourself")


def check_writable(flag: str, path: Path) -> None:
    """Checks that a file can be written, before the computation that it is for; leaves no file or folder.

    Raises:
      UserError: `path` is a folder, is too long, or is in a place without write permission.
    """
    created = []
    try:
        if path.is_dir():
            raise UserError(f"--{flag}={path}: is a folder; name a file")
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # raises for a name that is too long
        for folder in reversed(path.absolute().parents):
            if not folder.exists():
                folder.mkdir()
                created.append(folder)
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--{flag}={path}: cannot be written ({reason}); choose another path") from error
    finally:
        for folder in reversed(created):
            with contextlib.suppress(OSError):  # another process has created a file in it
                folder.rmdir()


def print_summaries(kind: str) -> int:
    """Prints the names of the packaged "configs" or "experiments", with their summaries. Returns the exit code 0."""
    summaries = packaged.summaries(kind)
    width = max(map(len, summaries), default=0)
    for name, summary in summaries.items():
        print(f"{name:{width}}  {summary}")
    return 0


def required(arguments: Arguments, name: str) -> str:
    """Returns the value of a flag. Raises UserError if it is not set."""
    if not getattr(arguments, name):
        raise UserError(f"--{name} is missing; add --{name}=...")
    return getattr(arguments, name)


def read_config(arguments: Arguments, stored: ConfigDict | None = None) -> ConfigDict:
    """Returns the config of --config, by default `stored`, with the command line's overrides.

    Overrides of the fields of `data` that select and read a data set are those of the parts on the same set, too.

    Raises:
      UserError: there is no config, or an override does not fit it.
    """
    config = stored if arguments.config is None else load_file(arguments.config)
    if config is None:
        raise UserError("--config is missing; add it, such as --config=configs/digits.py")
    config = with_optional_fields(config, map(_field_name, arguments.overrides))
    known = flatten(config)
    sections = {name.rsplit(".", 1)[0] for name in known if "." in name}
    seen = set()
    for override in arguments.overrides:
        equals, text = override.partition("=")[1:]
        path = _field_name(override)
        if path in sections:
            field = next(field for field in known if field.startswith(path))
            raise UserError(f"--config.{path} is a section; override one of its fields, such as --config.{field}")
        if path not in known:
            raise unknown("config field", path, known)
        if not equals and not isinstance(known[path], bool):
            text = documented_fields().get(documented_name(path), (None, ""))[1]
            raise UserError(f"{override} has no value; write {override}=VALUE" + (f": {text}" if text else ""))
        if path in seen:
            raise UserError(f"{override}: the field is set twice; set it once")
        seen.add(path)
        if type(known[path]) in (int, float):
            try:
                number(text, type(known[path]))
            except ValueError as error:
                raise UserError(f"{override}: {path} must be {_type_name(known[path])}") from error
    overrides = [_with_tuple(override, known) for override in arguments.overrides]
    holder = Flags()
    config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=["", *overrides])
    try:
        holder(["", *overrides])
    except absl_flags.IllegalFlagValueError as error:
        name = str(error).removeprefix("flag --config.").split("=")[0]
        raise UserError(
            f"{str(error).splitlines()[0].split(':')[0]}: {name} must be {_type_name(known[name])}"
        ) from error
    except absl_flags.Error as error:
        raise UserError(str(error).splitlines()[0]) from error
    shared = {
        path: holder.config.data[field]
        for field in _SHARED_DATA
        for path in known
        if path.startswith("parts.") and path.endswith(f".data.{field}") and path not in seen
        if f"data.{field}" in seen and known[path] == known[f"data.{field}"]
    }
    holder.config.update_from_flattened_dict(shared)
    if isinstance(seed := holder.config.get("seed", 0), int):
        validate_integer("--config.seed", seed, low=0, high=2**32 - 1)  # jax takes others modulo 2**32, so they repeat
    for name, value in flatten(holder.config).items():
        kind = str if _is_text_tuple(name, known[name]) else int | float
        if isinstance(value, tuple) and not all(isinstance(item, kind) for item in value):
            example = known[name] or (("label",) if kind is str else (1, 2))
            raise UserError(f"--config.{name}={value}: {name} must be {_type_name(example)}")
    return holder.config


def _field_name(override: str) -> str:
    """Returns the dotted name of the field that an override sets."""
    return override.lstrip("-").partition("=")[0].removeprefix("no").removeprefix("config.")


def _with_tuple(override: str, known: Mapping[str, Any]) -> str:
    """Returns an override with the entries of a tuple of text in quotes: a,b is ('a', 'b')."""
    name, equals, text = override.partition("=")
    field = name.lstrip("-").removeprefix("config.")
    if not equals or not _is_text_tuple(field, known.get(field)) or text.strip()[:1] in ("(", "[", "'", '"'):
        return override
    return f"{name}={tuple(entries(name.lstrip('-'), text))!r}"


def _is_text_tuple(name: str, value: Any) -> bool:
    """Returns whether a config field is a tuple of text, which may be empty."""
    return isinstance(value, tuple) and (name.rpartition(".")[2] in _TEXT_TUPLES or isinstance((*value, 0)[0], str))


def help_text(verb: str, doc: str, flags: Flags, positional: str = "") -> str:
    """Returns the help of a verb, from its docstring, its flags, and its arguments without a name."""
    usage = " ".join(["usage: python launch.py", verb, *([positional] if positional else []), "--flag=value ..."])
    lines = [usage, "", doc.strip()]
    for group, names in flag_groups(verb, flags).items():
        lines += ["", f"{group}:"]
        for name in names:
            flag = flags[name]
            default = "" if flag.value in (None, "", False, []) else f" (default {_plain(flag.value)})"
            syntax = f"--{name}" if flag.boolean else f"--{name}=..."
            text = textwrap.wrap(" ".join(flag.help.split()) + default, 84)
            lines += [f"  {syntax:23} {text[0]}"] + [" " * 26 + line for line in text[1:]]
    return "\n".join(lines)


def flag_groups(verb: str, flags: Flags) -> dict[str, list[str]]:
    """Returns the names of a verb's flags by purpose; flags that are in no group are under the name of the verb."""
    groups = _GROUPS if "sampler" in flags else {name: _GROUPS[name] for name in ("run", "processes", "output")}
    named = {group: [name for name in names if name in flags] for group, names in groups.items()}
    rest = [name for name in flags if not any(name in names for names in named.values())]
    output = named.pop("output")
    return {group: names for group, names in (named | {verb: rest, "output": output}).items() if names}


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _type_name(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if isinstance(value, tuple):
        return f"a tuple, such as {value!r}"
    return names.get(type(value), type(value).__name__)
