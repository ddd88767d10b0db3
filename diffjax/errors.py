"""User-facing errors and notes, argument validation, and printable text."""

import contextlib
import contextvars
import difflib
import logging
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence

_MAX_CHOICES = 16  # number of choices that an error lists even if one is similar
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")
_MAX_LENGTH, _END = 2_000, 500  # characters of a message, and of its end if its middle is left out
_FLAG = re.compile(r"(?:python )?launch\.py[^;`]*|--(?:config\.)?(\w+)")  # a command, or a flag outside of commands
_COMMAND = re.compile(r"(?<![\w./-])(?:python )?launch\.py(?= [A-Za-z-])")  # not the end of a path
_PROGRAMS = {"launch.py": "python launch.py", "__main__.py": "python -m diffjax"}  # others: diffjax
_ARGUMENTS = {"label": "labels", "prompt": "prompts"}  # arguments with other names than their flags
_names_arguments = contextvars.ContextVar("names_arguments", default=False)
_messages: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("messages", default=None)
_LINE_BREAKS = re.compile(r"[ \t]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


class UserError(Exception):
    """Bad input: one line with the problem and what to do. `launch.py` prints it without a traceback.

    The message is passed through `one_line`, because it may quote a file or another library's error.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(_with_names(str(message))))


class MissingData(UserError):
    """A data set that does not exist where it was expected."""


def printable(text: str) -> str:
    """Returns `text` with each unprintable character escaped as in `repr`; newlines stay.

    Text from files, such as captions and file names, can then not control the terminal.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Returns `text` as one printable line of at most 2,000 characters; " ... " marks text cut from the middle."""
    text = printable(_LINE_BREAKS.sub(" ", text.strip()))
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - _END - 5]} ... {text[-_END:]}"


def excerpt(text: str, limit: int = 200) -> str:
    """Returns the start of a text on one printable line, to quote a file or a library's error in a message."""
    shown = printable(text[: limit + 1]).replace("\n", r"\n")
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def note(message: str) -> None:
    """Prints a line on standard error about an input that was rounded, cut or replaced, or has no effect."""
    _report(f"note: {one_line(_with_names(message))}")


def warn(message: str) -> None:
    """Prints a line on standard error about a result that is not as expected."""
    _report(f"warning: {one_line(_with_names(message))}")


def _report(line: str) -> None:
    if (messages := _messages.get()) is None:
        print(line, file=sys.stderr)
    else:
        messages.append(line)


@contextlib.contextmanager
def collected_messages() -> Iterator[list[str]]:
    """Collects the notes and warnings of this thread in a list, instead of printing them."""
    messages: list[str] = []
    token = _messages.set(messages)
    try:
        yield messages
    finally:
        _messages.reset(token)


@contextlib.contextmanager
def naming_arguments() -> Iterator[None]:
    """Makes errors and notes name arguments of Python functions, as in `steps=2.5`, instead of flags, `--steps=2.5`.

    Flags of commands, such as `diffjax train --workdir=RUN`, stay.
    """
    token = _names_arguments.set(True)
    try:
        yield
    finally:
        _names_arguments.reset(token)


def _with_names(message: str) -> str:
    if not _names_arguments.get():
        return message
    message = _FLAG.sub(lambda match: _ARGUMENTS.get(match[1], match[1]) if match[1] else match[0], message)
    return with_program(message, "diffjax")


def program(file: str) -> str:
    """Returns how a command line starts: `python launch.py`, or `diffjax` for the installed program.

    Args:
      file: the file that runs, `sys.argv[0]`.
    """
    return _PROGRAMS.get(os.path.basename(file), "diffjax")


def with_program(text: str, name: str) -> str:
    """Returns text whose commands, `launch.py VERB`, start with the name of a program instead."""
    return text if name == _PROGRAMS["launch.py"] else _COMMAND.sub(name, text)


@contextlib.contextmanager
def quiet_libraries(level: int = logging.ERROR) -> Iterator[None]:
    """Hides what libraries report about their internals: records of absl's logger below `level`, and warnings."""
    logger = logging.getLogger("absl")
    is_shown = lambda record: record.levelno >= level  # noqa: E731
    logger.addFilter(is_shown)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="orbax|grain|tensorflow_datasets")
        try:
            yield
        finally:
            logger.removeFilter(is_shown)


def unknown(kind: str, name: str, choices: Iterable[str], *, listing: str = "") -> UserError:
    """Returns the error for a name that is not among `choices`.

    It suggests the choices that start with or contain the name, else the most similar one, and lists a few. `listing`
    is how to list the choices, in place of a list in the message.
    """
    choices = sorted(choices)
    text = name.lower()
    similar = [choice for choice in choices if text in choice.lower()] if len(text) > 1 else []
    similar.sort(key=lambda choice: not choice.lower().startswith(text))
    similar = similar or difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hints = [f"did you mean {' or '.join(map(repr, similar))}?"] if similar else []
    if listing:
        hints.append(listing)
    elif len(choices) <= _MAX_CHOICES or not similar:
        hints.append(f"choose from {', '.join(choices)}")
    return UserError(f"unknown {kind} {name!r}: {' '.join(hints)}")


def missing_field(error: Exception) -> UserError | None:
    """Returns the error for a field that a config lacks, if ml_collections raised `error` for one; else None."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    if "ml_collections" not in innermost.filename:
        return None
    field = str(error).strip("\"'").replace('Key "', "").split("'")[0].split('"')[0].split("\\n")[0]
    return UserError(f"the config does not have the field {field!r}; the config digits has all fields")


def machine_memory() -> int:
    """Returns the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextlib.contextmanager
def memory_limit_as_user_error(advice: str) -> Iterator[None]:
    """Turns an out-of-memory error of a device or of this machine into a UserError that ends with `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # JAX raises RuntimeErrors; on a CPU their code is INTERNAL
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise UserError(f"out of memory: {advice}") from error


def validate_number(
    name: str, value: float, low: float = -math.inf, high: float = math.inf, *, exclusive: str = ""
) -> float:
    """Returns `value` if it is a finite number in [`low`, `high`]. Values that are not Python numbers pass unchecked.

    Args:
      name: flag or config field, for the message.
      exclusive: "low" or "high" excludes that bound.

    Raises:
      UserError: `value` is not such a number.
    """
    if not isinstance(value, int | float):
        return value
    above = value > low if exclusive == "low" else value >= low
    below = value < high if exclusive == "high" else value <= high
    if above and below and math.isfinite(value):
        return value
    start = "" if low == -math.inf else f" above {low:g}" if exclusive == "low" else f" from {low:g}"
    end = "" if high == math.inf else f" below {high:g}" if exclusive == "high" else f" to {high:g}"
    raise UserError(
        f"{name}={value:g}: must be a finite number{start}{' and' * bool(start and end and exclusive)}{end}"
    )


def validate_integer(name: str, value: int, low: int = 1, high: int = 2**31 - 1) -> int:
    """Returns `value` if it is a whole number in [`low`, `high`]. Values that are not Python numbers pass unchecked.

    Raises:
      UserError: `value` is not such a number; the message has the field's `name`.
    """
    if not isinstance(value, int | float):
        return value
    if low <= value <= high and value == int(value):
        return value
    raise UserError(f"{name}={value}: must be a whole number from {low} to {high:,}")


def validate_names(name: str, value: Sequence[str]) -> Sequence[str]:
    """Returns `value` if it is a tuple or a list of text without empty entries.

    Raises:
      UserError: `value` is not; the message has the field's `name`.
    """
    if isinstance(value, tuple | list) and all(isinstance(entry, str) and entry for entry in value):
        return value
    raise UserError(f"{name}={value!r:.80}: must be a tuple of text, such as ('label',)")
