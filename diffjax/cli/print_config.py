"""Prints the values of a config, by section: `launch.py train --config=FILE --print_config`."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax.cli.flags import Arguments, read_config
from diffjax.runs import packaged
from diffjax.runs.config_fields import documented_fields, documented_name
from diffjax.runs.config_files import flatten
from diffjax.runs.workdir import Workdir

_LEGEND = """{source}: value, where it was set, documentation of every field
  default: the value of configs/common.py
  config: the config file, or a file that it is derived from
  command line: --config.FIELD=VALUE"""


def run(arguments: Arguments) -> int:
    """Prints the config that `train` would use. Returns the exit code 0."""
    workdir = Workdir(arguments.workdir) if arguments.workdir else None
    config = read_config(arguments, workdir.read_config() if workdir and workdir.config.exists() else None)
    file = arguments.config and packaged.find("configs", arguments.config.partition(":")[0])
    source = file or str(workdir and workdir.config)
    fields = documented_fields(str(Path(source).parent) if file else "")
    overridden = {_field_of(override) for override in arguments.overrides}
    print(_LEGEND.format(source=source))
    print("\n".join(describe(config, overridden, fields)))
    return 0


def _field_of(override: str) -> str:
    """Returns the field of --config.FIELD=VALUE or --noconfig.FIELD."""
    return override.lstrip("-").partition("=")[0].removeprefix("no").removeprefix("config.")


def describe(
    config: ConfigDict, overridden: Collection[str], fields: Mapping[str, tuple[Any, str]], prefix: str = ""
) -> Iterator[str]:
    """Yields a heading per section and a line per field, in the order of `fields`; then those of the parts.

    Args:
      config: resolved values.
      overridden: dotted names of the fields that the command line sets.
      fields: default and documentation of each field.
      prefix: start of the names, as in "parts.codec.".
    """
    values = {name: value for name, value in flatten(config).items() if not name.startswith("parts.")}
    order = {name: i for i, name in enumerate(fields)}
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for name in sorted(values, key=lambda name: (order.get(documented_name(name), len(order)), name)):
        default, text = fields.get(documented_name(name), (None, "not documented"))
        default = default if name in fields else None  # a stage's setting has no default
        is_default = (type(values[name]), values[name]) == (type(default), default)
        origin = "command line" if prefix + name in overridden else "default" if is_default else "config"
        section = name.partition(".")[0] if "." in name else "run"
        sections.setdefault(section, []).append((f"{prefix}{name} = {values[name]!r}", origin, text))
    for section, rows in sections.items():
        yield f"\n{prefix}{section}"
        width = max(len(setting) for setting, _, _ in rows)
        yield from (f"  {setting:{width}}  {origin:12}  # {text}" for setting, origin, text in rows)
    for name, part in config.parts.items() if "parts" in config else ():
        yield from describe(part, overridden, fields, f"{prefix}parts.{name}.")
