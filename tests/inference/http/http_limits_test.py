from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("httptools")

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.http.http_limits import HttpLimits
from tests.oracles.http_client import ask, connect, predict_request, read_all
from tests.oracles.http_wire import GET, LIMITS, Wire, post


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


def test_a_client_that_does_not_read_is_not_answered_more(wire):
    wire.send(GET % b"a")
    wire.connection.pause_writing()
    wire.answer("a")
    wire.send(GET % b"b" + GET % b"c")  # What was underway when reading was paused.
    assert wire.transport.done == ["pause_reading"]
    assert list(wire.application.waiting) == ["a"]
    wire.connection.resume_writing()
    assert list(wire.application.waiting) == ["a", "b", "c"]
    assert wire.transport.done == ["pause_reading", "resume_reading"]


def test_a_client_that_reads_nothing_for_long_is_dropped_and_a_slow_one_is_not(wire):
    wire.transport.unsent = 100
    wire.wait(1)
    for _ in range(5):
        wire.transport.unsent -= 1
        wire.wait(LIMITS.write_seconds)
    assert wire.transport.done == []
    wire.wait(1)
    wire.wait(LIMITS.write_seconds)
    assert wire.transport.done == ["abort"]


def test_a_head_that_comes_slowly_is_refused_whatever_its_pace(wire):
    seconds = int(LIMITS.header_seconds)
    for _ in range(seconds):
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n" if wire.now == 1000 else b"a: b\r\n")
        wire.wait(1)
    assert wire.take() == []
    wire.wait(1)
    ((status, headers, _),) = wire.take()
    assert (status, headers["connection"]) == (408, "close")


@pytest.mark.parametrize(("rate", "seconds", "status"), [(11, 90, 200), (5, 61, 408)])
def test_a_body_that_comes_slowly_is_refused_and_one_at_the_least_rate_is_not(
    loop, rate, seconds, status
):
    wire = Wire(loop, HttpLimits(body_seconds=30, min_body_rate=10))
    head = post(bytes(1000))[:-1000]
    wire.send(head)
    for _ in range(seconds - 1):
        wire.send(bytes(rate))
        wire.wait(1)
    assert wire.take() == []
    wire.wait(2)
    wire.send(bytes(1000 - rate * (seconds - 1)))
    assert wire.statuses() == [status]


def test_a_client_that_computes_long_is_not_hurried(wire):
    wire.send(GET % b"a")
    wire.wait(100_000)
    wire.answer("a")
    assert wire.bodies() == ["a"]
    wire.wait(LIMITS.idle_seconds)
    assert wire.transport.done == []


def test_a_client_that_must_wait_is_not_hurried(wire):
    wire.send(b"".join(GET % b"%d" % i for i in range(4)) + b"GET /now HT")
    wire.wait(1000)
    wire.wait(1000)
    for name in "0123":
        wire.answer(name)
    wire.wait(1)
    wire.send(b"TP/1.1\r\nHost: x\r\n\r\n")
    assert wire.bodies() == ["0", "1", "2", "3", "now"]


def test_an_idle_connection_is_closed_without_a_word(wire):
    wire.send(GET % b"now")
    wire.take()
    wire.wait(LIMITS.idle_seconds)
    assert wire.transport.done == []
    wire.wait(1)
    assert (wire.take(), wire.transport.done) == ([], ["close"])


def test_a_connection_that_never_asked_is_closed_sooner(wire):
    wire.wait(LIMITS.header_seconds + 1)
    assert (wire.take(), wire.transport.done) == ([], ["close"])


def test_a_client_that_does_not_close_is_closed(wire):
    wire.send(b"nonsense\r\n\r\n")
    wire.wait(LIMITS.linger_seconds)
    assert wire.transport.done == ["write_eof"]
    wire.wait(1)
    assert wire.transport.done == ["write_eof", "abort"]


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
    server = serve_http(header_seconds=0.2, body_seconds=0.2)
    slow = [connect(server) for _ in range(50)]
    for number, connection in enumerate(slow):
        connection.sendall(predict_request(1)[: -5 if number % 2 else 30])
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
