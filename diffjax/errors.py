"""UserError, and what raises it: unknown names, numbers out of range, too little memory. Notes and printable text."""

import contextlib
import difflib
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator

_FEW = 16
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")
_LONGEST, _END = 2_000, 500  # characters of a message, and of its end where its middle is left out
_LINE_BREAKS = re.compile(r"[ \t]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


class UserError(Exception):
    """Bad input, in one line that names the problem and the remedy. `launch.py` prints it without a traceback.

    The message is passed through `one_line`, as it may quote a file or another library's error.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(str(message)))


class MissingData(UserError):
    """A data set that is not where it was looked for."""


def printable(text: str) -> str:
    """Returns `text` with each character that is not printable escaped, as `repr` writes it; newlines stay.

    So no text of a file, such as a caption or a file name, controls the terminal.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Returns `text` as one printable line of at most 2,000 characters; what is left out of the middle is marked."""
    text = printable(_LINE_BREAKS.sub(" ", text.strip()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - _END - 5]} ... {text[-_END:]}"


def excerpt(text: str, limit: int = 200) -> str:
    """Returns the start of a text from a file or of a library's error, on one printable line, to quote in a message."""
    shown = printable(text[: limit + 1]).replace("\n", r"\n")
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def note(message: str) -> None:
    """Prints a line on standard error: an input was rounded, cut or replaced, or has no effect."""
    print(f"note: {one_line(message)}", file=sys.stderr)


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
