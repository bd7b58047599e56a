import os
import signal
import socket
from pathlib import Path

import pytest

from keras_deepseek.errors import PeerLostError
from keras_deepseek.training.parameter_server import local_tasks
from keras_deepseek.training.parameter_server.local_tasks import LocalTasks

SERVING = """
import contextlib, json, os, signal, socket, sys
addresses, kind, index, descriptor = sys.argv[1:]
host, port = json.loads(addresses)[kind][int(index)].split(":")
listener = socket.create_server((host, int(port)))
with contextlib.suppress(BrokenPipeError):  # After a restart, nobody reads it.
    os.write(int(descriptor), b"1")
signal.pause()
"""


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Makes the tasks run a program in the place of TensorFlow's."""

    def use(text):
        script = tmp_path / "task.py"
        script.write_text(text)
        monkeypatch.setattr(local_tasks, "_PROGRAM", [str(script)])

    return use


@pytest.fixture
def tasks(program):
    program(SERVING)
    tasks = LocalTasks(2, 1, timeout=60.0)
    yield tasks
    tasks.end()


def is_running(number):
    stat = Path(f"/proc/{number}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


def listens(address):
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=5.0):
        return True


def test_all_listen_on_loopback_and_are_ended(tasks):
    assert {kind: len(addresses) for kind, addresses in tasks.addresses.items()} == {
        "chief": 1,
        "worker": 2,
        "ps": 1,
    }
    assert all(listens(address) for address in tasks.addresses["worker"] + tasks.addresses["ps"])
    numbers = tasks.process_ids("worker") + tasks.process_ids("ps")
    assert len(numbers) == 3
    tasks.end()
    assert not any(is_running(number) for number in numbers)


def kill(number):
    os.kill(number, signal.SIGKILL)
    os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)


def test_a_worker_that_has_ended_is_started_again(tasks):
    first, second = tasks.process_ids("worker")
    kill(first)
    tasks.look_after()
    assert tasks.process_ids("worker")[1] == second
    assert tasks.process_ids("worker")[0] != first


def test_workers_that_end_again_and_again_are_given_up(tasks):
    for _ in range(3):
        kill(tasks.process_ids("worker")[0])
        tasks.look_after()
    tasks.note_update()
    for _ in range(3):
        kill(tasks.process_ids("worker")[1])
        tasks.look_after()
    kill(tasks.process_ids("worker")[1])
    with pytest.raises(PeerLostError, match="4 times without an update in between; worker 1 with"):
        tasks.look_after()


def test_workers_that_do_not_answer_are_ended_and_started_again(tasks):
    old_ids = tasks.process_ids("worker")
    for number in old_ids:
        os.kill(number, signal.SIGSTOP)
    tasks.look_after(ends_workers=True)
    assert not set(old_ids) & set(tasks.process_ids("worker"))


def test_a_server_that_has_ended_is_lost(tasks):
    kill(tasks.process_ids("ps")[0])
    with pytest.raises(PeerLostError, match="Parameter server 0 has ended with exit code -9"):
        tasks.look_after()


def test_one_that_ends_as_it_begins_is_said(program):
    program("import sys; sys.exit(7)")
    with pytest.raises(PeerLostError, match="has ended with exit code 7 during its start"):
        LocalTasks(1, 1, timeout=60.0)


def test_those_that_do_not_listen_in_time_are_named(program):
    program("import signal; signal.pause()")
    old_children = set(children())
    with pytest.raises(PeerLostError, match=r"Waited 0\.5 s for ps 0, worker 0"):
        LocalTasks(1, 1, timeout=0.5)
    assert set(children()) <= old_children


def children():
    for path in Path("/proc/self/task").glob("*/children"):
        yield from path.read_text().split()
