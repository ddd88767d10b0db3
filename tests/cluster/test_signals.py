"""Signals of a run: stored once, and received during work that does not check for them."""

import concurrent.futures
import signal
import threading

import pytest

from diffjax.cluster import signals
from diffjax.cluster.signals import StopSignal, has_abandoned_threads


@pytest.fixture
def handler():
    """Installs handlers; yields the numbers of the signals that they receive."""
    received = []
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    former = {number: signal.signal(number, lambda n, frame: received.append(n)) for number in numbers}
    yield received
    for number, before in former.items():
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_is_stored_and_the_second_is_ignored(number, handler):
    with StopSignal() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == number and handler == []


def test_the_third_interrupt_reaches_the_previous_handler(handler, capfd):
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert "one more" not in capfd.readouterr().err
        signal.raise_signal(signal.SIGINT)
        assert "one more Ctrl-C exits without saving" in capfd.readouterr().err and handler == []
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT and handler == [signal.SIGINT]


def test_an_ignored_hangup_stays_ignored(handler):
    """Tests the handlers under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal is None


def test_signals_after_the_context_reach_the_previous_handler(handler):
    with StopSignal() as stop:
        pass
    signal.raise_signal(signal.SIGTERM)
    assert stop.signal is None and handler == [signal.SIGTERM]


def test_interruptible_work_returns_its_result_or_raises(handler):
    with StopSignal() as stop:
        assert stop.run_interruptible(lambda a, b: a + b, 2, 3) == 5
        with pytest.raises(ZeroDivisionError):
            stop.run_interruptible(lambda: 1 / 0)
    assert not has_abandoned_threads()


def test_a_signal_abandons_work_in_progress(handler):
    began, may_end = threading.Event(), threading.Event()

    def work():
        began.set()
        may_end.wait(60)

    def interrupt():
        began.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with StopSignal() as stop:
        assert stop.run_interruptible(work) is None
        assert stop.signal == signal.SIGTERM and has_abandoned_threads()
        assert stop.run_interruptible(lambda: 1) is None  # it waits for nothing after a signal
    may_end.set()
    for thread in threading.enumerate():
        if thread.name == signals._THREAD_NAME:
            thread.join(60)
    assert not has_abandoned_threads()


def test_other_threads_than_the_main_one_record_no_signal(handler):
    def stop_signal():
        with StopSignal() as stop:
            return stop.run_interruptible(lambda: 3), stop.signal

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        assert threads.submit(stop_signal).result() == (3, None)
