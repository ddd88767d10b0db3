"""The one exception that is the user's to mend."""

import difflib
from collections.abc import Iterable

_FEW = 16


class UserError(Exception):
    """Bad input: one line that says what is wrong and what to do. `launch.py` prints it without a traceback."""


class MissingData(UserError):
    """A data set that is not where it was looked for."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is not among `choices`: the nearest right one, and all of them where they are few."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hints = [f"did you mean {near[0]!r}?"] if near else []
    if len(choices) <= _FEW or not near:
        hints.append(f"choose from {', '.join(choices)}")
    return UserError(f"unknown {kind} {name!r}: {' '.join(hints)}")
