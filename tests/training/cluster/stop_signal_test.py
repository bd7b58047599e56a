import os
import signal
import subprocess
import sys
import threading

import pytest

from keras_deepseek.training.cluster import stop_signal as stop_signal_module
from keras_deepseek.training.cluster.stop_signal import StopSignal, keeping_stop_signal


def test_sigterm_is_noted_and_the_process_goes_on():
    old_handler = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop_signal:
        assert not stop_signal.received
        signal.raise_signal(signal.SIGTERM)
        assert stop_signal.received
    assert signal.getsignal(signal.SIGTERM) is old_handler


def test_the_handler_of_before_is_put_back_after_an_error_too():
    def own(number, frame):
        pass

    old_handler = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(KeyError), StopSignal():
            {}["missing"]
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, old_handler)


def test_a_handler_that_an_engine_has_replaced_is_put_back():
    old_handler = signal.getsignal(signal.SIGTERM)
    with keeping_stop_signal():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is old_handler


def test_outside_of_the_main_thread_nothing_is_changed():
    old_handler = signal.getsignal(signal.SIGTERM)
    signal_states = []

    def run():
        with StopSignal() as stop_signal:
            signal_states.append((signal.getsignal(signal.SIGTERM), stop_signal.received))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert signal_states == [(old_handler, False)]


FORKED = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("stop_signal", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.StopSignal() as stop_signal:
    is_there, tell = os.pipe()
    child = os.fork()
    if not child:
        os.write(tell, b"1")
        while True:
            pass
    os.read(is_there, 1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status) == signal.SIGTERM, stop_signal.received)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Nothing is forked here.")
def test_a_process_that_was_forked_meanwhile_ends_by_the_signal():
    """A pool of data loaders is ended so, and waited for."""
    command = [sys.executable, "-c", FORKED, stop_signal_module.__file__]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["True", "False"]


def test_a_handler_that_was_set_since_stays():
    old_handler = signal.getsignal(signal.SIGTERM)

    def since(number, frame):
        pass

    try:
        with StopSignal():
            signal.signal(signal.SIGTERM, since)
        assert signal.getsignal(signal.SIGTERM) is since
    finally:
        signal.signal(signal.SIGTERM, old_handler)
