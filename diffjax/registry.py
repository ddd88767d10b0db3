"""Named choices of an axis, such as noise schedules: a module's public functions are the choices.

Configs and the command line write a choice as `name` or `name(option=value, ...)`: `min_snr(gamma=3)`,
`karras(rho=5)`, `sections(90, 60, 60, 20, 20)`.
"""

import ast
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from diffjax.errors import UserError, unknown


class Choice(NamedTuple):
    """A choice and its options, as written in a config.

    Attributes:
      name: name of the function.
      function: the function itself.
      values: positional arguments, for functions of any number of them.
      options: keyword-only arguments.
    """

    name: str
    function: Callable
    values: tuple[float, ...]
    options: dict[str, float]

    @property
    def all_options(self) -> dict[str, Any]:
        """Options, and the defaults of those that are not given."""
        return option_defaults(self.function) | self.options

    def bind(self, **injected: Any) -> Callable:
        """Returns the function with its options, and with those of `injected` that are among its arguments."""
        accepted = options(self.function)
        injected = {name: value for name, value in injected.items() if name in accepted}
        return functools.partial(self.function, **injected, **self.options)


def choices(*modules: ModuleType) -> dict[str, Callable]:
    """Returns the public functions that modules define, by name; of a package, those that it imports from within."""
    functions = [(module, *member) for module in modules for member in inspect.getmembers(module, inspect.isfunction)]
    return {
        name: function
        for module, name, function in functions
        if f"{function.__module__}.".startswith(f"{module.__name__}.") and not name.startswith("_")
    }


def lookup(kind: str, module: ModuleType | Sequence[ModuleType], text: str, *, injected: Iterable[str] = ()) -> Choice:
    """Parses `text` and looks the choice up in `module`. Nothing in `text` is evaluated.

    Args:
      kind: name of the axis, for error messages.
      module: its public functions are the choices; or several modules.
      text: `name` or `name(option=number, ...)`.
      injected: keyword-only arguments that the caller sets, so that users cannot.

    Raises:
      UserError: bad syntax, an unknown name or option; the message has the most similar name.
    """
    syntax_error = UserError(f"{kind}={text!r}: write a name, or name(option=number, ...)")
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        values = tuple(ast.literal_eval(value) for value in call.args)
        keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:  # any text can be in a config
        raise syntax_error from error
    arguments = (*values, *keywords.values())
    are_numbers = all(
        isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63) for value in arguments
    )
    has_duplicates = len(keywords) < len(call.keywords)
    if not isinstance(call.func, ast.Name) or has_duplicates or not are_numbers:
        raise syntax_error
    written_options = {name: value for name, value in keywords.items() if name is not None}
    if len(written_options) < len(keywords):  # **{...}
        raise syntax_error
    name, functions = call.func.id, choices(*([module] if isinstance(module, ModuleType) else module))
    if name not in functions:
        raise unknown(kind, name, functions)
    function = functions[name]
    check_options(f"{kind} {name!r}", options(function) - set(injected), written_options)
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    if values and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise UserError(f"{kind}={text!r}: write its options as {name}(option=number, ...)")
    return Choice(name, function, values, written_options)


def options(function: Callable) -> set[str]:
    """Returns the names of a function's keyword-only arguments."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def option_defaults(function: Callable) -> dict[str, Any]:
    """Returns the defaults of a function's keyword-only arguments, of those that have one."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def check_options(choice: str, accepted: Iterable[str], names: Iterable[str]) -> None:
    """Raises UserError for an option in `names` that `choice` does not accept."""
    accepted = sorted(accepted)
    for name in sorted(names):
        if name not in accepted:
            raise UserError(f"{choice} takes no {name!r}; it takes {', '.join(accepted) or 'no options'}")
