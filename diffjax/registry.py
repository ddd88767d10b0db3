"""Picking a named choice of an axis: the module is the registry, its public functions are the choices.

A choice is written `name` or `name(option=value, ...)`, in a config as on the command line: `min_snr(gamma=3)`,
`karras(rho=5)`, `sections(90, 60, 60, 20, 20)`.
"""

import ast
import functools
import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import NamedTuple

from diffjax.errors import UserError, unknown


class Choice(NamedTuple):
    """A choice as it was written, looked up."""

    name: str
    function: Callable
    values: tuple[float, ...]  # positional: only where the function takes any number of them
    options: dict[str, float]  # its keyword-only arguments

    def bind(self, **given) -> Callable:
        """The function with its options, and with those of `given` that it asks for."""
        asked = {name: value for name, value in given.items() if name in options(self.function)}
        return functools.partial(self.function, **asked, **self.options)


def choices(module: ModuleType) -> dict[str, Callable]:
    """The public functions that `module` itself defines, by name."""
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name: f for name, f in functions if f.__module__ == module.__name__ and not name.startswith("_")}


def choose(kind: str, module: ModuleType, text: str, *, given: Iterable[str] = ()) -> Choice:
    """Looks up the choice that `text` writes. `given` names keyword-only arguments that are not the user's to set.

    Raises UserError for a name or an option that does not exist, with the nearest right name, and for bad syntax.
    """
    wrong = UserError(f"{kind}={text!r}: write a name, or name(option=number, ...)")
    try:
        written = ast.parse(text.strip(), mode="eval").body
        call = written if isinstance(written, ast.Call) else ast.Call(written, [], [])
        values = tuple(ast.literal_eval(value) for value in call.args)
        own = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:  # whatever a text can do
        raise wrong from error
    given_values = (*values, *own.values())
    numbers = all(isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63) for value in given_values)
    twice = len(own) < len(call.keywords)
    if not isinstance(call.func, ast.Name) or None in own or twice or not numbers:
        raise wrong
    name, found = call.func.id, choices(module)
    if name not in found:
        raise unknown(kind, name, found)
    check_options(f"{kind} {name!r}", options(found[name]) - set(given), own)
    kinds = {parameter.kind for parameter in inspect.signature(found[name]).parameters.values()}
    if values and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise UserError(f"{kind}={text!r}: write its options as {name}(option=number, ...)")
    return Choice(name, found[name], values, own)


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
