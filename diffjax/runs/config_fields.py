"""Documentation of config fields, and where config files find it: configs/common.py.

Config files import it by `from configs import common`. `configs` is the folder of the config file if that has a
common.py, else the folder next to the package diffjax, no matter how and from where Python was started.
"""

import contextlib
import importlib
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CONFIGS = Path(__file__).parents[2] / "configs"
_STAGE = re.compile(r"^((parts|sampler\.stages)\.[^.]+\.)")


@contextlib.contextmanager
def configs_package(folder: str) -> Iterator[None]:
    """Makes `configs` a package of the modules in `folder`, then of those in this repository's configs/, for a while.

    Modules are executed anew, unless it is the same package already, as for a config file that loads another.
    """
    paths = [str(Path(folder).resolve()), str(_CONFIGS)]
    former = {name: sys.modules[name] for name in list(sys.modules) if name.partition(".")[0] == "configs"}
    if list(getattr(former.get("configs"), "__path__", ())) == paths:
        yield
        return
    package = types.ModuleType("configs")
    package.__path__ = paths
    _replace({"configs": package})
    try:
        yield
    finally:
        _replace(former)


def _replace(modules: Mapping[str, types.ModuleType]) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        del sys.modules[name]
    sys.modules.update(modules)


def documented_fields(folder: str = "") -> dict[str, tuple[Any, str]]:
    """Returns the default and the documentation of every field: `FIELDS` of the common.py of config files in `folder`.

    It is empty for a folder without a common.py where this repository's configs/ does not exist either.
    """
    with configs_package(folder or str(_CONFIGS)), contextlib.suppress(ImportError):
        return dict(importlib.import_module("configs.common").FIELDS)
    return {}


def documented_name(name: str) -> str:
    """Returns the name under which a field is documented.

    A part's field is documented as the field of its own config, and a stage's setting as the setting of `sampler`.
    """
    while match := _STAGE.match(name):
        name = name.replace(match[1], "sampler." if match[2] == "sampler.stages" else "", 1)
    return name
