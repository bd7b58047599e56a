from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("uvicorn")

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.server.http_limits import HttpLimits
from tests.oracles.http_client import ask, connect, predict_request, read_all


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "1", None])
def test_a_limit_that_limits_nothing_is_refused(value):
    with pytest.raises(InvalidInputError, match=f"`idle_seconds` must be .* received {value!r}"):
        HttpLimits(idle_seconds=value)


@pytest.mark.parametrize("value", [-1, float("inf"), False])
def test_the_time_of_an_unready_server_may_be_none_but_not_endless(value):
    assert HttpLimits(unready_seconds=0).unready_seconds == 0
    with pytest.raises(InvalidInputError, match=f"`unready_seconds` must be .* received {value!r}"):
        HttpLimits(unready_seconds=value)


def test_the_clock_is_looked_at_often_enough_for_the_shortest_limit():
    assert HttpLimits(write_seconds=0.1).tick_seconds == pytest.approx(0.025)
    assert HttpLimits().tick_seconds <= 1.0


def test_idle_connections_are_closed(serve_http):
    with connect(serve_http(idle_seconds=0.1)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(connection).endswith(b'{"status":"ready"}')


def test_a_client_that_reads_nothing_is_dropped_and_holds_nobody_up(serve_http):
    server = serve_http(write_seconds=0.2)
    path = 60_000 * b"a"  # The answer repeats it.

    def ask_without_reading():
        with connect(server) as connection:
            while True:
                connection.sendall(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % path)

    with ThreadPoolExecutor(1) as pool:
        dropped = pool.submit(ask_without_reading)
        while not dropped.done():
            assert ask(server, 2) == 4
        with pytest.raises(ConnectionError):
            dropped.result()


def test_clients_that_send_slowly_are_turned_away_and_others_served(serve_http):
    server = serve_http(header_seconds=1.0, body_seconds=1.0)
    slow = []
    for number in range(50):  # One that has sent nothing by then is closed without a word.
        slow.append(connect(server))
        slow[-1].sendall(predict_request(1)[: -5 if number % 2 else 30])
    assert ask(server, 2) == 4
    for connection in slow:
        assert read_all(connection).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        connection.close()


def test_connections_that_never_ask_are_closed_and_others_served(serve_http):
    server = serve_http(header_seconds=0.2)
    silent = [connect(server) for _ in range(50)]
    assert ask(server, 2) == 4
    for connection in silent:
        assert read_all(connection) == b""
        connection.close()
