"""Parses numbers and lists from the text of a flag."""

import math
import re

from diffjax.errors import UserError

_WHOLE = re.compile(r"[+-]?[0-9](_?[0-9])*")
_NUMBER = re.compile(r"[+-]?([0-9](_?[0-9])*\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


def number(text: str, kind: type[int] | type[float] = float) -> int | float:
    """Parses a number in ASCII digits; "inf" and "-inf" are numbers, "nan" is not.

    Raises:
      ValueError: `text` is not a number, has spaces or digits of other scripts, or is out of a float's range (1e400).
    """
    if kind is int:
        if not _WHOLE.fullmatch(text) or len(text) > 30:
            raise ValueError(f"{text!r} is not a whole number")
        return int(text)
    if text.lower() in ("inf", "+inf", "-inf"):
        return float(text)
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    value = float(text)
    underflows = value == 0 and re.search("[1-9]", text.lower().partition("e")[0])
    if math.isinf(value) or underflows:
        raise ValueError(f"{text!r} is beyond the range of a float")
    return value


def texts(text: str) -> list[str]:
    """Splits a list at the commas outside of brackets, and drops blank entries."""
    return [part for part in _split(text) if part]


def entries(name: str, text: str) -> list[str]:
    """Returns the entries of a flag whose value is a list. Raises UserError if one is blank."""
    parts = _split(text)
    if not all(parts):
        raise UserError(f"--{name}={text}: an entry is empty; separate entries with single commas, or remove the flag")
    return parts


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
