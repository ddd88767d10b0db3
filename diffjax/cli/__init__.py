"""Verbs of launch.py, one module per verb: `define(flags)` declares flags, `run(arguments)` returns an exit code.

A verb with arguments without a name describes them in POSITIONAL.
"""

import ast
import contextlib
import errno
import importlib
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from absl import flags as absl_flags

from diffjax import __version__, progress, xla_flags
from diffjax.cli.flags import help_text, parse
from diffjax.errors import (
    UserError,
    missing_field,
    one_line,
    printable,
    program,
    quiet_libraries,
    unknown,
    with_program,
)

VERBS = (
    *("train", "sample", "sweep", "evaluate", "compare", "reproduce"),
    *("benchmark", "encode", "pairs", "optimize_grid", "import", "export", "ema", "replay", "demo"),
)
_CLOSED = (errno.EPIPE, errno.EIO, errno.EBADF)  # errors of a pipe without a reader, and of a closed terminal
_STOP_THEMSELVES = ("train", "reproduce")  # verbs that handle SIGTERM themselves, or in their processes


def start() -> NoReturn:
    """Runs the command line of this process, and exits with the code of `main`."""
    code = main(sys.argv)
    if code > 128:  # Python's exit after a signal during a compilation can crash
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Runs `launch.py VERB --flags`.

    Bad input, including the environment, is reported in one line on standard error. A traceback is a bug of diffjax.

    Returns:
      0, or 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM.
    """
    with _output(program(argv[0] if argv else "")), quiet_libraries():
        try:
            code = _launch(argv)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt as error:
            return _stopped(error.args[0] if error.args else signal.SIGINT)
        except (UserError, OSError) as error:  # OSError: a full disk, a folder without permission, a missing file
            message = str(error)
        except (AttributeError, KeyError, RuntimeError, AssertionError) as error:
            if (user_error := missing_field(error) or _missing_device(error)) is None:
                raise
            message = str(user_error)
        print(f"error: {one_line(message)}", file=sys.stderr)
        return 2


def _launch(argv: Sequence[str]) -> int:
    if len(argv) < 2 or argv[1] in ("-h", "--help", "-help", "help"):
        print(_overview())
        return 0 if len(argv) > 1 else 2
    if argv[1] == "--version":
        print(f"diffjax {__version__}")
        return 0
    if argv[1].startswith("-"):
        raise UserError(
            f"{argv[1]}: the verb comes first; write launch.py VERB {argv[1]}, with VERB one of {', '.join(VERBS)}"
        )
    if argv[1] not in VERBS:
        raise unknown("verb", argv[1], VERBS)
    xla_flags.configure()
    with _stoppable(argv[1]), progress.shown():
        try:
            verb = importlib.import_module(f"diffjax.cli.{argv[1]}")  # imported late: jax takes seconds to import
        except ImportError as error:
            raise UserError(f"{error}: install diffjax again with pip, and what it requires") from error
        flags = absl_flags.FlagValues()
        verb.define(flags)
        positional = getattr(verb, "POSITIONAL", "")
        if {"-h", "--help", "-help"} & set(argv[2:]):
            print(help_text(argv[1], verb.__doc__ or "", flags, positional))
            return 0
        code = verb.run(parse(flags, argv[1:], positional=bool(positional)))
        _upload_results()
        return code


def _upload_results() -> None:
    """Uploads results of runs at URLs. Raises UserError if that fails."""
    from diffjax.runs import mirror  # imported late, as the verbs

    mirror.upload_results()
    mirror.forget()


@contextlib.contextmanager
def _stoppable(verb: str) -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt(number), so that temporary files are deleted as after Ctrl-C."""
    if verb in _STOP_THEMSELVES or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt(number)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _stopped(number: int) -> int:
    cause = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    print(f"stopped by {cause}: finished files are kept; there are no partial files", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return 128 + number


def _missing_device(error: Exception) -> UserError | None:
    """Returns the UserError for a device that jax cannot find or start; None for other errors."""
    if Path(traceback.extract_tb(error.__traceback__)[-1].filename).name != "xla_bridge.py":
        return None
    platforms = os.environ.get("JAX_PLATFORMS", "")
    reason = str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".") or "jax cannot use this platform"
    return UserError(f"JAX_PLATFORMS={platforms}: {reason}; set it to cpu, or to a platform of the installed jax")


class _Output(io.TextIOBase):
    """A text stream with unprintable characters escaped; a reader may close it early, such as `head`.

    Args:
      stream: standard output or standard error.
      name: name of the program, for commands in the text.
      allowed: regular expression of control sequences to keep, such as those of progress bars.
    """

    def __init__(self, stream: TextIO, name: str, allowed: str = r"\n"):
        self._stream, self._name, self._allowed = stream, name, re.compile(f"({allowed})")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, text: str) -> int:
        parts = self._allowed.split(with_program(text, self._name))
        shown = "".join(part if i % 2 else printable(part) for i, part in enumerate(parts))
        self._unless_closed(self._stream.write, shown.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def _unless_closed(self, act: Callable, *arguments: Any) -> None:
        """Calls `act`. After a failure, discards all text, so that Python's flush at exit does not fail as well."""
        try:
            act(*arguments)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if error.errno not in _CLOSED:  # results are in files, so a closed reader is not an error
                raise


@contextlib.contextmanager
def _output(program_name: str = "python launch.py") -> Iterator[None]:
    """Escapes the text of standard output and error; opens them if the shell closed them (`>&-`).

    Args:
      program_name: name that replaces `launch.py` in commands.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    out, err = _Output(sys.stdout, program_name), _Output(sys.stderr, program_name, allowed=r"\n|\r|\x1b\[A")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}} {_summary(name)}" for name in VERBS)
    return f"""diffjax: scalable diffusion in JAX

usage: python launch.py VERB --flag=value ...

verbs:
{verbs}

python launch.py VERB --help lists the flags of a verb; launch.py --version prints the version. Start with:
  python launch.py train --config=digits --workdir=runs/digits"""


def _summary(verb: str) -> str:
    """Returns the first line of a verb's docstring, without importing the verb and jax."""
    source = Path(__file__).with_name(f"{verb}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
