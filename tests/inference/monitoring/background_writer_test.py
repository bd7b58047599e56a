import subprocess
import sys
import threading

import pytest

from keras_deepseek.inference.monitoring import background_writer
from keras_deepseek.inference.monitoring.background_writer import BackgroundWriter


class Sink:
    """Takes what is written; `hold` makes it hang until `release`."""

    def __init__(self):
        self.items, self.calls, self.dropped = [], 0, 0
        self.entered = threading.Event()
        self._gate = threading.Event()
        self._gate.set()

    def write(self, items, dropped):
        self.entered.set()
        assert self._gate.wait(60)
        self.items += items
        self.dropped += dropped
        self.calls += 1

    def hold(self):
        self._gate.clear()

    def release(self):
        self._gate.set()


@pytest.fixture
def sink():
    return Sink()


@pytest.fixture
def make(sink):
    writers = []

    def make(write=sink.write, **options):
        writers.append(BackgroundWriter(write, name="a-test", **options))
        return writers[-1]

    yield make
    sink.release()
    for writer in writers:
        writer.close(60)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "a-test"]


def test_items_are_written_in_their_order_and_together(make, sink):
    writer = make(interval=3600.0)
    for number in range(1000):
        writer.put(number)
    assert writer.flush(60)
    assert (sink.items, sink.calls) == (list(range(1000)), 1)
    writer.put(1000)
    assert writer.flush(60)
    assert sink.items == list(range(1001))


def test_they_are_written_without_being_asked_for_also_after_a_rest(make, sink):
    writer = make(interval=0.001)
    for number in range(20):
        sink.entered.clear()
        writer.put(number)
        assert sink.entered.wait(60)


def test_items_of_many_threads_are_all_written_once(make, sink):
    writer = make(interval=0.001, max_waiting=10**6)
    putting = [
        threading.Thread(target=lambda first=first: [writer.put(first + n) for n in range(5000)])
        for first in (0, 5000, 10000, 15000)
    ]
    for thread in putting:
        thread.start()
    for thread in putting:
        thread.join()
    assert writer.flush(60)
    assert sorted(sink.items) == list(range(20000))


def test_what_hangs_holds_nobody_up_and_what_is_too_much_is_dropped_and_told(make, sink):
    writer = make(max_waiting=10, interval=0.001)
    sink.hold()
    writer.put("first")
    assert sink.entered.wait(60)
    for number in range(25):
        writer.put(number)
    assert not writer.flush(0.01)
    sink.release()
    assert writer.flush(60)
    assert sink.items == ["first", *range(10)]
    assert sink.dropped == 15
    writer.put("later")
    assert writer.flush(60)
    assert (sink.items[-1], sink.dropped) == ("later", 15)


def test_an_error_is_logged_once_and_the_rest_goes_on(make, sink, caplog):
    def write(items, dropped):
        if "bad" in items:
            raise OSError("no space")
        sink.write(items, dropped)

    writer = make(write)
    for item in ("bad", "good", "bad", "better"):
        writer.put(item)
        assert writer.flush(60)
    assert sink.items == ["good", "better"]
    assert [record.exc_info[0] for record in caplog.records] == [OSError]


def test_the_thread_begins_with_the_first_item_and_ends_with_close(make, sink):
    writer = make()
    writer.close()
    assert threads() == []
    writer.put(1)
    assert len(threads()) == 1
    writer.close(60)
    assert (threads(), sink.items) == ([], [1])
    writer.put(2)  # Of a request that was late.
    writer.close(60)
    assert (threads(), sink.items) == ([], [1, 2])


def test_a_close_does_not_wait_for_ever(make, sink):
    writer = make(interval=0.001)
    sink.hold()
    writer.put(1)
    assert sink.entered.wait(60)
    writer.close(0.01)
    assert len(threads()) == 1
    sink.release()


SCRIPT = """
import sys, threading
from keras_deepseek.inference.monitoring.background_writer import BackgroundWriter

def write(items, dropped):
    sys.stdout.write("".join(items))
    sys.stdout.flush()
    if sys.argv[1] == "hang":
        threading.Event().wait()

writer = BackgroundWriter(write, name="a-test", interval=3600.0 if sys.argv[1] == "end" else 0.001)
writer.put("a line")
if sys.argv[1] == "hang":
    sys.stdin.readline()
"""


def test_what_waits_is_written_before_the_process_ends():
    call = [sys.executable, "-c", SCRIPT, "end"]
    process = subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "a line", "")


def test_a_process_ends_though_its_writer_hangs():
    call = [sys.executable, "-c", SCRIPT, "hang"]
    with subprocess.Popen(call, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.read(6) == "a line"
        _, errors = process.communicate("\n", timeout=300)
    assert (process.returncode, errors) == (0, "")


def test_the_end_waits_a_second_at_most():
    assert background_writer.END_SECONDS == 1.0
