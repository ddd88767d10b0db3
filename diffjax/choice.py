"""Picking a named choice of an axis: the module is the registry, its public functions are the choices."""

import inspect
from collections.abc import Callable, Iterable
from types import ModuleType

from diffjax.errors import UserError, unknown


def choices(module: ModuleType) -> dict[str, Callable]:
    """The public functions that `module` itself defines, by name."""
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name: f for name, f in functions if f.__module__ == module.__name__ and not name.startswith("_")}


def choose(kind: str, module: ModuleType, name: str) -> Callable:
    """The choice `name` of `module`. Raises UserError with the nearest right name."""
    found = choices(module)
    if name not in found:
        raise unknown(kind, name, found)
    return found[name]


def options(function: Callable) -> set[str]:
    """The names of a choice's keyword-only arguments."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(choice: str, takes: Iterable[str], given: Iterable[str]) -> None:
    """Raises UserError for an option in `given` that is not among those `choice` takes."""
    takes = sorted(takes)
    for name in sorted(given):
        if name not in takes:
            raise UserError(f"{choice} takes no {name!r}; it takes {', '.join(takes) or 'no options'}")
