import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_deepseek.inference.server.termination import Interruption, wait_heeding_signals

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(autouse=True)
def by_default():
    defaults = (signal.SIG_DFL, signal.default_int_handler, signal.SIG_DFL)
    previous = [
        signal.signal(number, default) for number, default in zip(SIGNALS, defaults, strict=True)
    ]
    yield
    for number, handler in zip(SIGNALS, previous, strict=True):
        signal.signal(number, handler)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def test_nothing_is_left_behind_where_no_signal_comes():
    old_handlers = handlers()
    with Interruption() as interruption:
        assert not set(handlers()) & set(old_handlers)
    assert handlers() == old_handlers
    assert not interruption.has_come


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_is_the_system_s(number):
    old_handlers = handlers()
    with Interruption() as interruption:
        signal.raise_signal(number)
    assert interruption.has_come
    assert handlers() == old_handlers


def test_a_terminal_that_is_closed_may_say_so_twice():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    assert interruption.has_come
    assert handlers() == [signal.SIG_DFL, signal.default_int_handler, signal.SIG_IGN]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_handler_of_the_process_stays(number):
    heard = threading.Event()
    signal.signal(number, lambda *_: heard.set())
    with Interruption() as interruption:
        signal.raise_signal(number)
    assert heard.is_set()
    assert not interruption.has_come


def test_what_a_handler_of_the_process_raises_for_ctrl_c_ends_the_block():
    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
    assert interruption.has_come
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_sigterm_may_be_the_block_s_in_spite_of_a_handler():
    heard = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: heard.set())
    old_handlers = handlers()
    with Interruption(takes_sigterm=True) as interruption:
        signal.raise_signal(signal.SIGTERM)
    assert interruption.has_come
    assert not heard.is_set()
    assert handlers() == old_handlers


def test_another_thread_leaves_signals_alone():
    def enter():
        with Interruption():
            return handlers()

    old_handlers = handlers()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() == old_handlers


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


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("meet", [signal.raise_signal, import_an_extension, drop])
def test_an_interruption_ends_the_block_whatever_becomes_of_the_signal(number, meet):
    reached = []
    with Interruption() as interruption:
        meet(number)
        interruption.check()
        reached.append("what follows")
    assert not reached


@pytest.mark.parametrize("number", SIGNALS)
def test_a_dropped_signal_is_repeated(number):
    end = time.monotonic() + 60
    with Interruption():
        drop(number)
        while time.monotonic() < end:
            threading.Event().wait(0.1)
    assert time.monotonic() < end


def test_a_wait_ends_though_the_signal_was_dropped():
    class Dropping(threading.Event):
        def wait(self, timeout=None):
            drop(signal.SIGTERM)
            return False

    with Interruption() as interruption:
        interruption.wait(Dropping())
    assert interruption.has_come


def test_a_wait_ends_with_its_event():
    event = threading.Event()
    event.set()
    with Interruption() as interruption:
        interruption.wait(event)
    assert not interruption.has_come


class SignalledWait(threading.Event):
    """Meets a signal in its second wait."""

    def __init__(self, meet):
        super().__init__()
        self.meet = meet
        self.waits = 0

    def wait(self, timeout=None):
        self.waits += 1
        if self.waits > 1:
            self.meet(signal.SIGTERM)
        return False


@pytest.mark.parametrize("meet", [signal.raise_signal, drop])
def test_a_second_signal_ends_the_wait_after_the_first_and_a_third_is_the_system_s(meet):
    old_handlers, event = handlers(), SignalledWait(meet)
    with Interruption() as interruption:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            interruption.wait_for_another(event, 600)
        assert event.waits == 2
    assert interruption.has_come
    assert handlers() == old_handlers


def test_the_wait_after_a_signal_ends_with_its_event_or_its_time():
    ended = threading.Event()
    ended.set()
    with Interruption() as interruption:
        interruption.wait_for_another(ended, 600)
        interruption.wait_for_another(threading.Event(), 0)
        assert interruption.has_come


def test_without_a_signal_errors_leave_the_block():
    def fail():
        with Interruption() as interruption:
            interruption.check()
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", SIGNALS)
def test_what_the_process_passes_over_it_passes_over_here(number):
    signal.signal(number, signal.SIG_IGN)
    with Interruption() as interruption:
        signal.raise_signal(number)
    assert not interruption.has_come
    assert signal.getsignal(number) is signal.SIG_IGN
