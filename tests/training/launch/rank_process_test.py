import os
import select
import signal
import sys

import pytest

from keras_deepseek.training.launch.rank_process import RankProcess

needs_waitid = pytest.mark.skipif(not hasattr(os, "waitid"), reason="Python has no waitid here")


class Recorder:
    """Stands for `Output`."""

    def __init__(self):
        self.out = self.error = b""

    def write_out(self, data):
        self.out += data

    def write_error(self, data):
        self.error += data


class Groups(set):
    """Stands for `Watchdog`."""


@pytest.fixture
def start():
    started = []

    def start(code):
        output, groups = Recorder(), Groups()
        process = RankProcess(3, "[3] ", [sys.executable, "-c", code], {}, output, groups)
        started.append(process)
        return process, output, groups

    yield start
    for process in started:
        process.kill()
        process._process.communicate()


def wait_for_output(process):
    """Waits until a pipe has something, or its end; returns its descriptor."""
    readable, _, _ = select.select(list(process.outputs), [], [], 60)
    return readable[0]


def wait_for_end(process):
    """Waits until the process has ended, and leaves it to be collected."""
    os.waitid(os.P_PID, process._process.pid, os.WEXITED | os.WNOWAIT)


@needs_waitid
def test_what_it_wrote_and_how_it_ended_are_there_at_the_end(start):
    process, output, groups = start(
        "import sys; print('out'); print('error', file=sys.stderr, end=''); sys.exit(5)"
    )
    assert len(groups) == 1
    wait_for_end(process)
    assert process.collect() == 5
    assert (output.out, output.error) == (b"[3] out\n", b"[3] error\n")
    assert process.last_errors == ["error"]
    assert groups == set()


@needs_waitid
def test_its_end_is_seen_before_its_number_is_given_up(start):
    process, _, _ = start("print('here', flush=True); import signal; signal.pause()")
    assert process.read(wait_for_output(process)) == 5
    assert not process.has_ended()
    process.send(signal.SIGTERM)
    wait_for_end(process)
    assert process.has_ended()
    assert process._process.returncode is None
    assert process.collect() == -signal.SIGTERM


def test_reading_tells_nothing_yet_from_nothing_any_more(start):
    process, _, _ = start("import os, signal; os.close(2); print(1, flush=True); signal.pause()")
    out, error = process.outputs
    assert wait_for_output(process) in (out, error)
    select.select([out], [], [], 60)
    select.select([error], [], [], 60)
    assert process.read(error) == 0
    assert process.read(out) == 2
    assert process.read(out) is None
    process.kill()
    assert process.collect() == -signal.SIGKILL


@needs_waitid
def test_one_that_left_its_group_and_goes_on_writing_is_not_heard_out(start):
    code = (
        "import os, subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', "
        "'import os\\nwhile True: os.write(1, b\"x\" * 9999)'], start_new_session=True)\n"
        "print('started', file=sys.stderr, flush=True)\n"
    )
    process, output, _ = start(code)
    wait_for_end(process)
    assert process.collect() == 0  # Where it goes on, its pipe is closed: it ends of that.
    assert output.error == b"[3] started\n"
