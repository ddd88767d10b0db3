"""Signals that end a run: the loop finishes what must be whole, and leaves what need not be."""

import contextlib
import queue
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

from diffjax.train import hosts

T = TypeVar("T")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ATTENTION = 0.2  # seconds
_ATTENDED = "attended"  # the name of threads


class StopSignal(contextlib.AbstractContextManager):
    """Notes the first SIGTERM or SIGINT and lets the loop end by itself; a second one acts as ever.

    Where there are several processes, `signal` is what they have agreed on: each says at every step what came to it,
    and hears at the next, together with all, what came to any.
    """

    def __init__(self):
        self._own: int | None = None
        self._agreed: int | None = None
        self._heard = None
        self._ask = None if hosts.alone() else hosts.make_agreement()

    @property
    def signal(self) -> int | None:
        return self._agreed if self._ask else self._own

    def agree(self) -> None:
        if self._ask:
            self._agreed = int(self._heard) or None if self._heard is not None else None
            self._heard = self._ask(self._own or 0)

    def attend(self, work: Callable[..., T], *given) -> T | None:
        """work(*given), or None as soon as there is a signal: in a thread, as no signal reaches Python within XLA."""
        done: queue.SimpleQueue = queue.SimpleQueue()

        def put():
            try:
                done.put((work(*given), None))
            except BaseException as error:
                done.put((None, error))

        threading.Thread(target=put, name=_ATTENDED, daemon=True).start()
        while self.signal is None:
            with contextlib.suppress(queue.Empty):
                result, error = done.get(timeout=_ATTENTION)
                if error is not None:
                    raise error
                return result
        return None

    def __enter__(self):
        self._former = {s: signal.signal(s, self._note) for s in _SIGNALS}
        return self

    def _note(self, number, frame):
        self._own = number
        self._restore()

    def _restore(self):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        self._restore()


def has_left_work() -> bool:
    """Whether a compilation or a preview is still going on that a signal has left: Python cannot exit in good order."""
    return any(thread.name == _ATTENDED for thread in threading.enumerate())
