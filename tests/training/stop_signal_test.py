import signal
import threading

import pytest

from keras_deepseek.training.stop_signal import StopSignal


def test_sigterm_is_noted_and_the_process_goes_on():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop_signal:
        assert not stop_signal.received
        signal.raise_signal(signal.SIGTERM)
        assert stop_signal.received
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_handler_of_before_is_put_back_after_an_error_too():
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(KeyError), StopSignal():
            {}["missing"]
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_of_the_main_thread_nothing_is_changed():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with StopSignal() as stop_signal:
            seen.append((signal.getsignal(signal.SIGTERM), stop_signal.received))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
