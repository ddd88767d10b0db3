"""The package `configs` that config files import, and the documentation of fields in its module `common`."""

import contextlib
import importlib
import os
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

from diffjax.runs.packaged import CONFIGS

_STAGE = re.compile(r"^((parts|sampler\.stages)\.[^.]+\.)")


@contextlib.contextmanager
def configs_package(folder: str) -> Iterator[None]:
    """Makes `configs` the package of the modules in `folder` and then of the packaged configs.

    Inside the context the modules are imported anew. Afterwards `sys.modules` has the former ones.
    """
    former = _pop_configs()
    package = sys.modules["configs"] = types.ModuleType("configs")
    package.__path__ = [os.path.abspath(folder), str(CONFIGS)]
    try:
        yield
    finally:
        _pop_configs()
        sys.modules.update(former)


def _pop_configs() -> dict[str, types.ModuleType]:
    """Removes `configs` and its modules from `sys.modules`, and returns them."""
    names = [name for name in sys.modules if name.partition(".")[0] == "configs"]
    return {name: sys.modules.pop(name) for name in names}


def documented_fields(folder: str = "") -> dict[str, tuple[Any, str]]:
    """Returns the default and the documentation of every field: `FIELDS` of the common.py of config files in `folder`.

    It is empty for a folder without a common.py where there are no packaged configs either.
    """
    with configs_package(folder or str(CONFIGS)), contextlib.suppress(ImportError):
        return dict(importlib.import_module("configs.common").FIELDS)
    return {}


def documented_name(name: str) -> str:
    """Returns the name under which a field is documented.

    A part's field is documented as the field of its own config, and a stage's setting as the setting of `sampler`.
    """
    while match := _STAGE.match(name):
        name = name.replace(match[1], "sampler." if match[2] == "sampler.stages" else "", 1)
    return name
