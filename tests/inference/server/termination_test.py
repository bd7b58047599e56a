import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_deepseek.inference.server.termination import (
    Interruption,
    interrupted_by_sigterm,
    wait_heeding_signals,
)


@pytest.fixture(autouse=True)
def by_default():
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, previous)


def test_the_signal_interrupts_and_the_second_one_is_the_system_s():
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_nothing_is_left_behind_where_it_does_not_come():
    with interrupted_by_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_process_stays():
    heard = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: heard.set())
    with interrupted_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert heard.is_set()


def test_another_thread_leaves_signals_alone():
    def enter():
        with interrupted_by_sigterm():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() is signal.SIG_DFL


def test_a_wait_looks_for_signals_from_time_to_time():
    waits = []

    class Late(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return len(waits) == 3

    wait_heeding_signals(Late())
    assert len(waits) == 3
    assert all(0 < seconds <= 1 for seconds in waits)


def import_an_extension(number):
    """What pybind11 makes of a signal amid its imports."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error


def drop(number):
    """What code that looks whether there is a package may do."""
    try:
        signal.raise_signal(number)
    except BaseException:  # noqa: BLE001
        return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("meet", [signal.raise_signal, import_an_extension, drop])
def test_an_interruption_ends_the_block_whatever_becomes_of_the_signal(number, meet):
    before, reached = signal.getsignal(number), []
    with Interruption() as interruption:
        meet(number)
        interruption.check()
        reached.append("what follows")
    assert not reached
    assert signal.getsignal(number) is before


def test_without_a_signal_errors_leave_the_block():
    def fail():
        with Interruption() as interruption:
            interruption.check()
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_that_the_process_passes_over_stays_so():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)
