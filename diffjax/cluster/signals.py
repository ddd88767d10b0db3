"""Signals that end a run: the loop finishes what must be whole, and leaves what need not be."""

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

from diffjax.cluster import multihost

T = TypeVar("T")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ABSORBED = 2  # Ctrl-C that do not interrupt the save; the next one does
_ATTENTION = 0.2  # seconds
_ATTENDED = "attended"  # the name of threads


class StopSignal(contextlib.AbstractContextManager):
    """Notes the first SIGTERM, SIGINT or SIGHUP, so that the loop ends by itself.

    Further signals are absorbed: schedulers and terminals send several, which must not interrupt the save. To end at
    once there are SIGKILL and the third Ctrl-C, which acts as it did before. A SIGHUP that is ignored, as under nohup,
    stays ignored.

    Where there are several processes, `signal` is what they have agreed on: each says at every step what came to it,
    and hears at the next, together with all, what came to any.
    """

    def __init__(self):
        self._own: int | None = None
        self._interrupts = 0
        self._agreed: int | None = None
        self._heard = None
        self._ask = None if multihost.alone() else multihost.make_agreement()

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
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        noted = [number for number in _SIGNALS if not (number == signal.SIGHUP and ignored)]
        self._former = {number: signal.signal(number, self._note) for number in noted}
        return self

    def _note(self, number, frame):
        self._own = self._own or number
        self._interrupts += number == signal.SIGINT
        if self._interrupts == _ABSORBED and number == signal.SIGINT:
            signal.signal(number, self._former[number])
            with contextlib.suppress(OSError):  # print is not safe in a handler
                os.write(2, b"\nsaving before the end; one more Ctrl-C ends without saving\n")

    def _restore(self):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        self._restore()


def has_left_work() -> bool:
    """Whether a compilation or a preview is still going on that a signal has left: Python cannot exit in good order."""
    return any(thread.name == _ATTENDED for thread in threading.enumerate())
