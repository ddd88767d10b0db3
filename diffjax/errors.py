"""The one exception that is the user's to mend, and what raises it: unknown names, numbers out of range, no memory."""

import contextlib
import difflib
import math
import os
from collections.abc import Iterable, Iterator

_FEW = 16
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")


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


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextlib.contextmanager
def enough_memory(told: str) -> Iterator[None]:
    """Raises UserError, with what the user is `told` to change, where a device or this machine is out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # JAX's errors are RuntimeErrors; a CPU's says INTERNAL
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise UserError(f"out of memory: {told}") from error


def checked_number(
    name: str, value: float, low: float = -math.inf, high: float = math.inf, *, open_at: str = ""
) -> float:
    """`value`. Raises UserError, which names the field, unless it is a finite number from `low` to `high`.

    Those are among what is allowed but for the one that `open_at` names, "low" or "high". What is no Python number, as
    a traced one, is taken as it is.
    """
    if not isinstance(value, int | float):
        return value
    above = value > low if open_at == "low" else value >= low
    below = value < high if open_at == "high" else value <= high
    if above and below and math.isfinite(value):
        return value
    start = "" if low == -math.inf else f" above {low:g}" if open_at == "low" else f" from {low:g}"
    end = "" if high == math.inf else f" below {high:g}" if open_at == "high" else f" to {high:g}"
    raise UserError(f"{name}={value:g}: a finite number{start}{' and' * bool(start and end and open_at)}{end}")


def checked_whole(name: str, value: int, low: int = 1, high: int = 2**31 - 1) -> int:
    """`value`. Raises UserError, which names the field, unless it is a whole number from `low` to `high`.

    What is no Python number is taken as it is.
    """
    if not isinstance(value, int | float):
        return value
    if low <= value <= high and value == int(value):
        return value
    raise UserError(f"{name}={value}: a whole number from {low} to {high:,}")
