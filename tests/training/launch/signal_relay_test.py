import os
import select
import signal
import subprocess
import sys

import pytest

from keras_deepseek.training.launch.job import SignalRelay


@pytest.fixture
def calls():
    return []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_noted_acted_on_and_given_back(calls, number):
    old_handler = signal.getsignal(number)
    with SignalRelay(lambda *arguments: calls.append(arguments)) as relay:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert relay.received == [number, signal.SIGTERM]
        assert select.select([relay.descriptor], [], [], 0)[0]
        relay.drain()
        assert not select.select([relay.descriptor], [], [], 0)[0]
    assert calls == [(number, True), (signal.SIGTERM, False)]
    assert signal.getsignal(number) is old_handler


def test_the_end_of_a_child_wakes_a_selector(calls):
    with SignalRelay(lambda *arguments: calls.append(arguments)) as relay:
        process = subprocess.Popen([sys.executable, "-c", ""])
        assert select.select([relay.descriptor], [], [], 60)[0] == [relay.descriptor]
        process.wait()
    assert calls == []


def test_what_is_ignored_stays_ignored(calls):
    old_handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalRelay(lambda *arguments: calls.append(arguments)):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, old_handler)
    assert calls == []
