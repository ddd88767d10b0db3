"""Flags shared by the verbs, their help, and errors in one line."""

import dataclasses
import textwrap
import traceback
from collections.abc import Sequence

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from diffjax.config import flatten, load_file
from diffjax.errors import UserError, unknown

Flags = absl_flags.FlagValues
MOST = 10_000_000  # samples, or what else is counted, that a verb takes at once


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The parsed command line: a flag is an attribute, an override of the config stays as it was written."""

    values: Flags
    overrides: Sequence[str]

    def __getattr__(self, name: str):
        return getattr(self.values, name)


def define_workdir(flags: Flags) -> None:
    absl_flags.DEFINE_string("workdir", None, "folder of the run", flag_values=flags)


def define_config(flags: Flags) -> None:
    absl_flags.DEFINE_string(
        "config",
        None,
        "config file, such as configs/digits.py; any field of it can be overridden with --config.path.to.field=value",
        flag_values=flags,
    )


def define_sampling(flags: Flags) -> None:
    """What the verbs that draw from a trained run share."""
    for name, default, low, text in (
        ("seed", 0, 0, "sample i has the seed SEED + i, whatever the batch size"),
        ("batch_size", 100, 1, "samples drawn at once; does not change them"),
    ):
        absl_flags.DEFINE_integer(name, default, text, low, 2**31 - 1, flag_values=flags)
    absl_flags.DEFINE_integer("checkpoint", None, "step of the checkpoint (default: the last)", flag_values=flags)


def parse(flags: Flags, argv: Sequence[str]) -> Arguments:
    """Parses `argv` (the verb first). Config overrides are left to `read_config`. Raises UserError."""
    overrides = [argument for argument in argv[1:] if argument.lstrip("-").startswith(("config.", "noconfig."))]
    rest = [argument for argument in argv if argument not in overrides]
    if overrides and "config" not in flags:
        raise UserError(f"{argv[0]} takes no config overrides: it uses the config that the run was trained with")
    try:
        positional = flags(rest)[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise unknown("flag", error.flagname, flags) from error
    except absl_flags.Error as error:
        raise UserError(str(error)) from error
    if positional:
        raise UserError(f"unexpected argument {positional[0]!r}: flags are written --name=value")
    return Arguments(flags, overrides)


def required(arguments: Arguments, name: str) -> str:
    if not getattr(arguments, name):
        raise UserError(f"--{name} is missing")
    return getattr(arguments, name)


def read_config(arguments: Arguments, stored: ConfigDict | None = None) -> ConfigDict:
    """The config of --config, or `stored` where that is not given, with the overrides. Raises UserError."""
    config = stored if arguments.config is None else load_file(arguments.config)
    if config is None:
        raise UserError("--config is missing: for instance --config=configs/digits.py")
    known = flatten(config)
    sections = {name.rsplit(".", 1)[0] for name in known if "." in name}
    for override in arguments.overrides:
        name, equals, _ = override.lstrip("-").partition("=")
        path = name.removeprefix("no").removeprefix("config.")
        if path in sections:
            field = next(field for field in known if field.startswith(path))
            raise UserError(f"--config.{path} is a section: override one of its fields, such as --config.{field}")
        if path not in known:
            raise unknown("config field", path, known)
        if not equals and not isinstance(known[path], bool):
            raise UserError(f"{override} has no value: write {override}=VALUE")
    holder = Flags()
    config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=["", *arguments.overrides])
    try:
        holder(["", *arguments.overrides])
    except absl_flags.IllegalFlagValueError as error:
        name = str(error).removeprefix("flag --config.").split("=")[0]
        raise UserError(f"{str(error).splitlines()[0].split(':')[0]}: {name} is {_type_name(known[name])}") from error
    except absl_flags.Error as error:
        raise UserError(str(error).splitlines()[0]) from error
    for name, value in flatten(holder.config).items():
        kind = str if isinstance(known[name], tuple) and isinstance((*known[name], 0)[0], str) else int | float
        if isinstance(value, tuple) and not all(isinstance(item, kind) for item in value):
            raise UserError(f"--config.{name}={value}: {name} is {_type_name(known[name])}")
    return holder.config


def missing_field(error: Exception) -> UserError | None:
    """What to say of an error that ml_collections raised: code asked for a field that the config lacks."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    if "ml_collections" not in innermost.filename:
        return None
    field = str(error).strip("\"'").replace('Key "', "").split("'")[0].split('"')[0].split("\\n")[0]
    return UserError(f"the config has no field {field!r}: see configs/digits.py for a complete one")


def help_text(verb: str, doc: str, flags: Flags) -> str:
    """A verb's help, for a reader who does not know absl."""
    lines = [f"usage: python launch.py {verb} --flag=value ...", "", doc.strip(), "", "flags:"]
    for name in sorted(flags):
        flag = flags[name]
        default = "" if flag.value in (None, "", False, []) else f" (default {_plain(flag.value)})"
        syntax = f"--{name}" if flag.boolean else f"--{name}=..."
        text = textwrap.wrap(" ".join(flag.help.split()) + default, 84)
        lines += [f"  {syntax:18} {text[0]}"] + [" " * 21 + line for line in text[1:]]
    return "\n".join(lines)


def _plain(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _type_name(value) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if isinstance(value, tuple):
        return f"a tuple, such as {value!r}"
    return names.get(type(value), type(value).__name__)
