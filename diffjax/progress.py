"""Messages on standard error about compilations, for the command line."""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

_DELAY = 1.0  # seconds of a compilation before it is announced
_shown = False


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Enables the messages, which Python programs that import diffjax do not get."""
    global _shown
    former, _shown = _shown, True
    try:
        yield
    finally:
        _shown = former


class Compilation:
    """Announces compilations of a program that take more than a second, and their time. Only the main process prints.

    As a context manager it surrounds calls of a jitted function that calls `start` when it is traced:

        compilation = Compilation("the sampler")

        @jax.jit
        def sample(key):
            compilation.start()  # runs when traced, once per compilation
            ...

        with compilation:
            samples = sample(key)
    """

    def __init__(self, name: str):
        self._name = name
        self._timer: threading.Timer | None = None
        self._since = 0.0

    def start(self) -> None:
        """Starts the time of a compilation."""
        import jax  # late, since the command line imports this module before it configures jax

        if _shown and self._timer is None and jax.process_index() == 0:
            self._since = time.monotonic()
            self._timer = threading.Timer(_DELAY, _print, [f"compiling {self._name} ..."])
            self._timer.daemon = True
            self._timer.start()

    def __enter__(self) -> "Compilation":
        return self

    def __exit__(self, error_type, error, trace) -> None:
        timer, self._timer = self._timer, None
        if timer is None:
            return
        timer.cancel()
        timer.join()
        if error is None and (seconds := time.monotonic() - self._since) > _DELAY:
            _print(f"compiled {self._name} in {seconds:.1f} s")


@contextlib.contextmanager
def compiling(name: str) -> Iterator[None]:
    """Announces a block that compiles a program, if it takes more than a second."""
    with Compilation(name) as compilation:
        compilation.start()
        yield


def announced_jit(name: str, **options: Any) -> Callable[[Callable], Callable]:
    """Decorates a function by `jax.jit`, whose compilations are announced under `name`."""

    def decorate(function):
        import jax

        compilation = Compilation(name)

        @functools.wraps(function)
        def traced(*arguments, **keywords):
            compilation.start()
            return function(*arguments, **keywords)

        compiled = jax.jit(traced, **options)

        @functools.wraps(function)
        def call(*arguments, **keywords):
            with compilation:
                return compiled(*arguments, **keywords)

        return call

    return decorate


def _print(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed standard error
        tqdm.write(line, file=sys.stderr)  # above a progress bar
