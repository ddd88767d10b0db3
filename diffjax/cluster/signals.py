"""Signals that end training: the loop completes and saves its step, and abandons other work."""

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
_MAX_IGNORED = 2  # Ctrl-C that do not interrupt the save; the next one does
_POLL_INTERVAL = 0.2  # seconds
_THREAD_NAME = "interruptible"


class StopSignal(contextlib.AbstractContextManager):
    """Records the first SIGTERM, SIGINT or SIGHUP, so that the loop can end in good order.

    Further signals are ignored: schedulers and terminals send several, which must not interrupt the save. SIGKILL and
    the third Ctrl-C end the process at once. A SIGHUP that is ignored already, as under nohup, stays ignored. No signal
    is recorded outside of the main thread.

    Several processes agree on `signal`: each sends its signal at every step, and at the next step all receive the
    largest of all.
    """

    def __init__(self):
        self._local: int | None = None
        self._interrupts = 0
        self._agreed: int | None = None
        self._pending = None
        self._allreduce_max = None if multihost.is_single_process() else multihost.make_allreduce_max()

    @property
    def signal(self) -> int | None:
        """The signal to stop for, or None."""
        return self._agreed if self._allreduce_max else self._local

    def agree(self) -> None:
        """Exchanges signals between processes. All of them must call it at the same steps."""
        if self._allreduce_max:
            self._agreed = int(self._pending) or None if self._pending is not None else None
            self._pending = self._allreduce_max(self._local or 0)

    def run_interruptible(self, work: Callable[..., T], *arguments) -> T | None:
        """Returns work(*arguments), or None as soon as there is a signal.

        The work runs in a thread, as Python does not handle signals inside XLA. After a signal the thread is abandoned.
        """
        done: queue.SimpleQueue = queue.SimpleQueue()

        def work_in_thread():
            try:
                done.put((work(*arguments), None))
            except BaseException as error:
                done.put((None, error))

        threading.Thread(target=work_in_thread, name=_THREAD_NAME, daemon=True).start()
        while self.signal is None:
            with contextlib.suppress(queue.Empty):
                result, error = done.get(timeout=_POLL_INTERVAL)
                if error is not None:
                    raise error
                return result
        return None

    def __enter__(self):
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        is_main = threading.current_thread() is threading.main_thread()  # only it may set handlers
        noted = [number for number in _SIGNALS if is_main and not (number == signal.SIGHUP and ignored)]
        self._former = {number: signal.signal(number, self._note) for number in noted}
        return self

    def _note(self, number, frame):
        self._local = self._local or number
        self._interrupts += number == signal.SIGINT
        if self._interrupts == _MAX_IGNORED and number == signal.SIGINT:
            signal.signal(number, self._former[number])
            with contextlib.suppress(OSError):  # print is not safe in a handler
                os.write(2, b"\nsaving before exit; one more Ctrl-C exits without saving\n")

    def _restore(self):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        self._restore()


def has_abandoned_threads() -> bool:
    """Returns whether abandoned work is still running, which prevents a normal exit of Python."""
    return any(thread.name == _THREAD_NAME for thread in threading.enumerate())
