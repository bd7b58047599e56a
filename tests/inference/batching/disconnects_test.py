import socket
from contextlib import ExitStack

import pytest

from keras_deepseek.inference.batching.batch import Batch, Request, Slice
from keras_deepseek.inference.batching.batcher import Batcher
from keras_deepseek.inference.batching.late_requests import find_disconnected


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
