"""The verbs of launch.py, one module each: `define(flags)` declares flags, `run(arguments)` returns an exit code."""

import ast
import contextlib
import errno
import importlib
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from absl import flags as absl_flags

from diffjax import __version__, xla_flags
from diffjax.cli.flags import help_text, missing_field, parse
from diffjax.errors import UserError, one_line, printable, unknown

VERBS = ("train", "sample", "sweep", "evaluate", "reproduce", "benchmark", "export", "replay")
_CLOSED = (errno.EPIPE, errno.EIO, errno.EBADF)  # a pipe without a reader, a terminal that is gone
_STOP_THEMSELVES = ("train", "reproduce")  # verbs that handle SIGTERM, or start processes that do


def start() -> NoReturn:
    """Runs the command line of this process, and exits with the code of `main`."""
    code = main(sys.argv)
    if code > 128:  # after a signal within a compilation Python's own end is a segmentation fault
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Runs `launch.py VERB --flags`.

    Bad input, of which the environment is a part, is one line on standard error. No exit shows a traceback unless
    diffjax has a bug.

    Returns:
      0, or 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM.
    """
    with _output():
        try:
            code = _launch(argv)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt as error:
            return _stopped(error.args[0] if error.args else signal.SIGINT)
        except (UserError, OSError) as error:  # OSError: a full disk, a folder without permission, a missing file
            message = str(error)
        except (AttributeError, KeyError, RuntimeError, AssertionError) as error:
            if (found := missing_field(error) or _missing_device(error)) is None:
                raise
            message = str(found)
        print(f"error: {one_line(message)}", file=sys.stderr)
        return 2


def _launch(argv: Sequence[str]) -> int:
    _quiet_libraries()
    if len(argv) < 2 or argv[1] in ("-h", "--help", "-help", "help"):
        print(_overview())
        return 0 if len(argv) > 1 else 2
    if argv[1] == "--version":
        print(f"diffjax {__version__}")
        return 0
    if argv[1].startswith("-"):
        raise UserError(f"{argv[1]}: the verb comes first; write launch.py VERB {argv[1]}, VERB of {', '.join(VERBS)}")
    if argv[1] not in VERBS:
        raise unknown("verb", argv[1], VERBS)
    xla_flags.configure()
    with _stoppable(argv[1]):
        try:
            verb = importlib.import_module(f"diffjax.commands.{argv[1]}")  # late: it imports jax, which takes seconds
        except ImportError as error:
            raise UserError(f"{error}: install diffjax and what it requires with `pip install -e .`") from error
        flags = absl_flags.FlagValues()
        verb.define(flags)
        if {"-h", "--help", "-help"} & set(argv[2:]):
            print(help_text(argv[1], verb.__doc__, flags))
            return 0
        return verb.run(parse(flags, argv[1:]))


@contextlib.contextmanager
def _stoppable(verb: str) -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt(number), so that temporary files are deleted as after Ctrl-C."""
    if verb in _STOP_THEMSELVES or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise KeyboardInterrupt(number)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _stopped(number: int) -> int:
    how = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    print(f"stopped by {how}: files that were finished are kept, and no file is left in part", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return 128 + number


def _missing_device(error: Exception) -> UserError | None:
    """Returns the error for a device that jax cannot find or start; None for an error of another kind."""
    if Path(traceback.extract_tb(error.__traceback__)[-1].filename).name != "xla_bridge.py":
        return None
    platforms = os.environ.get("JAX_PLATFORMS", "")
    reason = str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".") or "jax cannot use this platform"
    return UserError(f"JAX_PLATFORMS={platforms}: {reason}; set it to cpu, or to what the installed jax supports")


class _Output(io.TextIOBase):
    """A stream whose text every terminal can show, and whose reader may leave, as `head` does.

    Args:
      stream: standard output or standard error.
      moves: regular expression of the control sequences that are not escaped: those of progress bars.
    """

    def __init__(self, stream: TextIO, moves: str = r"\n"):
        self._stream, self._moves = stream, re.compile(f"({moves})")

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, text: str) -> int:
        parts = self._moves.split(text)
        shown = "".join(part if i % 2 else printable(part) for i, part in enumerate(parts))
        self._unless_closed(self._stream.write, shown.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def _unless_closed(self, act, *given) -> None:
        """Acts, or from a failure on discards all text, so that Python does not fail again at its end."""
        try:
            act(*given)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if error.errno not in _CLOSED:  # results are in files, so a reader that left is no error
                raise


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """Makes standard output and standard error safe, also where the shell closed them (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    out, err = _Output(sys.stdout), _Output(sys.stderr, moves=r"\n|\r|\x1b\[A")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def _overview() -> str:
    verbs = "\n".join(f"  {name:10} {_summary(name)}" for name in VERBS)
    return f"""diffjax: scalable diffusion in JAX

usage: python launch.py VERB --flag=value ...

verbs:
{verbs}

python launch.py VERB --help lists a verb's flags, launch.py --version the version. Start with:
  python launch.py train --config=configs/digits.py --workdir=runs/digits"""


def _summary(verb: str) -> str:
    """Returns the first line of a verb's docstring without importing it, and so jax."""
    source = Path(__file__).with_name(f"{verb}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)).splitlines()[0]


def _quiet_libraries() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="orbax|grain|tensorflow_datasets")
