import socket
import threading
import time
import weakref
from contextlib import ExitStack

import numpy as np
import pytest

from keras_deepseek.inference.batching.batch import Batch, Request, Slice
from keras_deepseek.inference.batching.batcher import Batcher
from keras_deepseek.inference.batching.late_requests import (
    NUM_KEPT,
    DeadlineWatch,
    find_disconnected,
)


def request_of(deadline):
    return Request({"x": np.zeros((1, 1))}, deadline=deadline)


def test_it_knows_which_are_due_and_gives_each_once():
    watch = DeadlineWatch(lambda: None, clock=lambda: 0.0)
    late, soon = request_of(9.0), request_of(5.0)
    assert not watch.is_due(100.0)
    watch.add(late)
    watch.add(soon)
    assert not watch.is_due(4.9)
    assert watch.is_due(5.0)
    assert watch.take_due(5.0) == [soon]
    assert watch.take_due(9.0) == [late]
    assert watch.take_due(9.0) == []
    watch.close()


def test_an_answered_request_is_not_due():
    watch = DeadlineWatch(lambda: None, clock=lambda: 0.0)
    request = request_of(1.0)
    watch.add(request)
    request.withdraw()
    assert watch.take_due(2.0) == []
    watch.close()


def test_an_answered_request_is_not_kept_until_its_deadline():
    watch = DeadlineWatch(lambda: None, clock=lambda: 0.0)
    requests = [request_of(1.0) for _ in range(10 * NUM_KEPT)]
    for request in requests:
        watch.add(request)
        request.withdraw()
    assert len(watch._heap) <= NUM_KEPT + 1
    watch.close()


def test_an_answered_request_and_its_inputs_are_not_kept():
    watch = DeadlineWatch(lambda: None, clock=lambda: 0.0)
    request = request_of(1.0)
    watch.add(request)
    reference = weakref.ref(request)
    del request
    assert reference() is None
    assert watch.take_due(2.0) == []
    watch.close()


def test_its_thread_wakes_when_a_deadline_passes():
    times, woken = [0.0], threading.Event()

    def wake():
        late.extend(watch.take_due(times[0]))
        woken.set()

    late = []
    watch = DeadlineWatch(wake, clock=lambda: times[0])
    wait = watch._condition.wait

    def let_time_pass(timeout):
        if timeout is None:
            return wait()
        times[0] += timeout
        return True

    watch._condition.wait = let_time_pass
    request = request_of(3.0)
    watch.add(request)
    assert woken.wait(60)
    assert late == [request]
    watch.close()
    assert not watch._thread.is_alive()


def test_a_deadline_beyond_all_that_a_thread_can_wait_for_does_no_harm():
    watch = DeadlineWatch(lambda: None, clock=time.monotonic)
    entered, wait = threading.Event(), watch._condition.wait

    def wait_and_tell(timeout):
        entered.set()
        return wait(timeout)

    watch._condition.wait = wait_and_tell
    watch.add(request_of(1e19))
    assert entered.wait(60)
    watch.close()
    assert not watch._thread.is_alive()


@pytest.fixture
def pairs():
    """Three connections: the server's sockets, and those of its clients."""
    with ExitStack() as stack:
        yield [[stack.enter_context(end) for end in socket.socketpair()] for _ in range(3)]


@pytest.fixture
def requests(pairs, rows):
    return [
        Request(rows(number), connection=client.fileno())
        for number, (client, _) in enumerate(pairs)
    ]


def batch_of(requests):
    return Batch([Slice(request, 0, request.rows) for request in requests], "idle", 0.0)


def test_a_client_that_has_closed_is_found_though_its_bytes_are_not_read(pairs, requests, rows):
    for _, client in pairs:
        client.sendall(b"its next request")
    assert find_disconnected(batch_of(requests)) == []
    pairs[1][1].close()
    pairs[2][1].shutdown(socket.SHUT_WR)
    second = Request(rows(7), connection=pairs[1][0].fileno())  # Of the same connection.
    disconnected = find_disconnected(batch_of([*requests, second, Request(rows(8))]))
    assert disconnected == [requests[1], requests[2], second]


def test_a_connection_that_the_server_has_closed_has_no_client(pairs, requests):
    pairs[0][0].close()
    assert find_disconnected(batch_of(requests)) == requests[:1]


def test_the_batcher_does_not_run_requests_of_clients_that_are_gone(doubler, pairs, requests, rows):
    batcher = Batcher([doubler.run], max_batch_size=2)
    large = Request(rows(5, 6, 7), connection=pairs[1][0].fileno())  # Of three rows: two batches.
    for request in (*requests, large):
        batcher.submit(request)
    pairs[1][1].close()
    batcher.close()
    assert doubler.rows_seen == [0, 2]
    assert [request.has_answer for request in requests] == [True, False, True]
    assert not large.has_answer
    assert batcher.statistics().waiting_rows == 0
