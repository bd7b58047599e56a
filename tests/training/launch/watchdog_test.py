import os
import signal
import subprocess
import sys

import pytest

from keras_deepseek.training.launch import watchdog
from keras_deepseek.training.launch.watchdog import Watchdog, watch


@pytest.fixture
def sleeper():
    process = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True
    )
    yield process
    process.kill()
    process.wait()


def test_what_is_left_is_what_came_and_did_not_go():
    assert watch(["+10\n", "+11\n", "-10\n", "+12\n", "-99\n"]) == {11, 12}


def test_a_line_that_was_cut_short_is_no_group():
    assert watch(["+10\n", "+1"]) == {10}


def test_it_ends_what_is_left_when_its_block_is_left(sleeper):
    with Watchdog() as dog:
        dog.add(sleeper.pid)
        assert sleeper.poll() is None
    assert sleeper.wait(timeout=60) == -signal.SIGKILL


def test_it_leaves_alone_what_was_taken_off(sleeper):
    with Watchdog() as dog:
        dog.add(sleeper.pid)
        dog.remove(sleeper.pid)
    assert sleeper.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone shows what is ignored, in /proc")
def test_it_is_not_there_for_signals(sleeper):
    with subprocess.Popen(
        [sys.executable, "-I", "-S", watchdog.__file__], stdin=subprocess.PIPE
    ) as process:
        process.stdin.write(b"+%d\n" % sleeper.pid)
        process.stdin.flush()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            ignored = False
            while not ignored:  # Until it has come so far.
                with open(f"/proc/{process.pid}/status", encoding="ascii") as file:  # noqa: PTH123
                    mask = next(line for line in file if line.startswith("SigIgn"))
                ignored = bool(int(mask.split()[1], 16) >> (number - 1) & 1)
            os.kill(process.pid, number)
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    assert sleeper.wait(timeout=60) == -signal.SIGKILL


def test_without_it_nothing_fails(sleeper):
    with Watchdog() as dog:
        dog._process.kill()
        dog._process.wait()
        dog.add(sleeper.pid)
        dog.remove(sleeper.pid)
