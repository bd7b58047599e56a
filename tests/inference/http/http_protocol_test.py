import gc
import random

import pytest

pytest.importorskip("uvicorn")

from keras_deepseek.inference.http.http_protocol import MAX_PIPELINED
from keras_deepseek.inference.server.http_limits import HttpLimits
from tests.oracles.http_wire import GET, LIMITS, Wire, post

CHUNKED = (
    b"POST /now HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;note=x\r\nab\r\n3\r\ncde\r\n0\r\nHost: evil\r\n\r\n"
)


def test_an_answer_is_written_and_the_connection_stays_open(wire):
    wire.send(post(b"hello"))
    ((status, headers, body),) = wire.take()
    assert (status, body) == (200, "hello")
    assert "connection" not in headers
    wire.send(GET % b"now")
    assert wire.bodies() == ["now"]
    assert wire.transport.done == []


def test_a_stream_of_requests_may_be_split_at_every_position(loop):
    stream = GET % b"now" + post(b"hello") + CHUNKED + GET % b"now"
    for position in range(len(stream) + 1):
        wire = Wire(loop)
        wire.send(stream[:position], stream[position:])
        assert wire.bodies() == ["now", "hello", "abcde", "now"]
    wire = Wire(loop)
    wire.send(*(stream[i : i + 1] for i in range(len(stream))))
    assert wire.bodies() == ["now", "hello", "abcde", "now"]


def test_a_trailer_replaces_no_header(wire):
    wire.send(CHUNKED)
    assert dict(wire.application.scopes[0]["headers"])[b"host"] == b"x"


def test_pipelined_requests_are_answered_in_their_order(wire):
    wire.send(GET % b"a" + GET % b"now" + GET % b"b")
    assert list(wire.application.waiting) == ["a"]
    wire.answer("a")
    assert wire.bodies() == ["a", "now"]
    wire.answer("b")
    assert wire.bodies() == ["b"]
    assert wire.transport.done[-1] == "resume_reading"


def test_a_client_that_pipelines_without_end_is_answered_some_and_refused(wire):
    wire.send(GET % b"a" + GET % b"now" * 100_000)
    assert len(wire.connection.pipeline) == MAX_PIPELINED
    wire.answer("a")
    for _ in range(MAX_PIPELINED):
        wire.run(lambda: None)
    assert wire.statuses() == [200] * MAX_PIPELINED + [400]
    assert wire.transport.done[-1] == "write_eof"


def test_a_refusal_comes_after_the_answers_before_it_and_is_the_last(wire):
    wire.send(GET % b"a" + b"nonsense\r\n\r\n" + GET % b"now")
    assert wire.bodies() == []
    wire.answer("a")
    (_, first, body), (status, last, _) = wire.take()
    assert (body, status) == ("a", 400)
    assert "connection" not in first
    assert last["connection"] == "close"
    assert wire.transport.done[-1] == "write_eof"  # What still comes must not reset the connection.
    wire.send(GET % b"now")
    assert wire.take() == []


@pytest.mark.parametrize("end", ["eof_received", "lost"])
def test_a_client_that_hangs_up_cancels_its_requests(wire, end):
    wire.send(GET % b"a" + GET % b"b")
    wire.run(
        wire.connection.eof_received
        if end == "eof_received"
        else lambda: wire.connection.connection_lost(ConnectionResetError())
    )
    assert wire.application.ended == ["a hung up"]
    assert (wire.take(), list(wire.application.waiting)) == ([], ["a"])


def test_a_client_that_hangs_up_in_its_body_is_noticed(wire):
    wire.send(post(b"hello")[:-1])
    wire.run(wire.connection.eof_received)
    assert wire.application.ended == ["hung up"]


def test_the_client_decides_whether_the_connection_is_kept(loop):
    for head in (
        b"GET /now HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /now HTTP/1.0\r\n\r\n",
        b"GET /now HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    ):
        wire = Wire(loop)
        wire.send(head + GET % b"now")
        assert [headers["connection"] for _, headers, _ in wire.take()] == ["close"]
        assert wire.transport.done == ["close"]


def test_a_client_is_told_to_go_on_but_not_among_earlier_answers(wire):
    head, body = post(b"hello", b"Expect: 100-continue").split(b"\r\n\r\n")
    wire.send(head + b"\r\n\r\n")
    assert wire.transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.take()
    wire.send(body)
    assert wire.bodies() == ["hello"]
    wire.send(GET % b"a" + head + b"\r\n\r\n")
    assert wire.transport.written == b""
    wire.answer("a")
    assert wire.statuses() == [200, 100]
    wire.send(body)
    assert wire.bodies() == ["hello"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x, y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: user@x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x/path\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x:port\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (post(b"")[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET http://[x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\n\r\n", 505),
    ],
)
def test_what_is_malformed_is_refused_and_the_connection_closed(loop, data, status):
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        wire = Wire(loop)
        wire.send(*pieces, GET % b"now")
        ((received_status, headers, _),) = wire.take()
        assert (received_status, headers["connection"]) == (status, "close")
        assert wire.transport.done == ["write_eof"]


def test_a_body_that_looks_like_a_head_follows_its_head(wire):
    wire.send(post(b"HTTP/1.1 200 OK"))
    assert wire.transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert wire.transport.written.endswith(b"\r\n\r\nHTTP/1.1 200 OK")


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 70_000, 200_000])
def test_an_address_beyond_the_limit_is_refused_in_one_piece_too(wire, size):
    wire.send(b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert wire.statuses() == [431]


@pytest.mark.parametrize("host", [b"x", b"x:80", b"[::1]:80", b"127.0.0.1", b"", b"a.b-c_d"])
def test_a_host_is_a_name_or_an_address_with_or_without_a_port(wire, host):
    wire.send(b"GET /now HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
    assert wire.statuses() == [200]


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 1000,
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * 1000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 200,
        CHUNKED[:-2] + b"a: b\r\n" * 200,
        CHUNKED[:-2] + b"a" * 1000,
        CHUNKED[:-6] + b"0;" + b"a" * 1000,
    ],
)
def test_a_head_without_end_is_refused(loop, data):
    wire = Wire(loop, HttpLimits(max_header_bytes=500))
    wire.send(*(data[i : i + 1] for i in range(len(data))))
    assert wire.statuses() == [431]


def test_headers_are_counted(loop):
    head = b"GET /now HTTP/1.1\r\nHost: x\r\n"
    for count, status in ((4, 200), (5, 431)):
        wire = Wire(loop, HttpLimits(max_header_fields=5))
        wire.send(head + b"a: b\r\n" * count + b"\r\n")
        assert wire.statuses() == [status]


def test_a_body_in_small_pieces_is_no_head_without_end(loop):
    wire = Wire(loop, HttpLimits(max_header_bytes=100))
    wire.send(CHUNKED[: CHUNKED.index(b"2;")], b"1\r\na\r\n" * 1000, b"0\r\n\r\n")
    assert wire.bodies() == ["a" * 1000]


def test_the_heads_of_many_requests_are_not_added_up(loop):
    wire = Wire(loop, HttpLimits(max_header_bytes=100))
    for _ in range(5):
        wire.send(post(b"hello")[:-5], b"hello")
    assert wire.bodies() == ["hello"] * 5


def test_random_bytes_and_damaged_requests_raise_nothing(loop):
    source = random.Random(7)
    for number in range(1000):
        data = bytearray(post(b"hello") + CHUNKED + GET % b"now")
        for _ in range(source.randrange(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        wire = Wire(loop)
        wire.send(bytes(data) if number % 4 else source.randbytes(1000))
        wire.run(wire.connection.eof_received)


def test_one_connection_more_than_the_most_is_refused(loop):
    for num_others, status in ((4, []), (5, [503])):
        wire = Wire(loop, HttpLimits(max_connections=5), num_other_connections=num_others)
        assert wire.statuses() == status
        wire.send(GET % b"now")
        assert wire.statuses() == ([] if status else [200])


def test_a_request_without_room_is_refused_before_its_body_and_the_connection_is_kept(wire):
    wire.full = {b"/now"}
    request = post(b"hello")
    wire.send(request[:-5])
    assert wire.take() == [(429, {"content-length": "4"}, "full")]
    wire.send(request[-5:] + request + CHUNKED)
    assert wire.bodies() == ["full", "full"]
    wire.full = set()
    wire.send(request)
    assert wire.bodies() == ["hello"]
    assert (len(wire.application.scopes), wire.transport.done) == (1, [])


@pytest.mark.parametrize("is_refused_early", [True, False])
def test_a_body_behind_its_answer_is_read_up_to_the_limit_of_bodies(wire, is_refused_early):
    wire.full = {b"/now"} if is_refused_early else set()
    wire.application.is_early = not is_refused_early
    head = CHUNKED[: CHUNKED.index(b"2;")]
    piece = b"2710\r\n" + bytes(10_000) + b"\r\n"
    wire.send(head, *[piece] * 10)
    assert (wire.statuses(), wire.transport.done) == ([429 if is_refused_early else 404], [])
    wire.send(piece)
    assert wire.transport.done == ["write_eof"]
    wire.send(*[piece] * 10)
    wire.wait(LIMITS.linger_seconds + 1)
    assert (wire.take(), wire.transport.done) == ([], ["write_eof", "abort"])


def test_a_refused_body_that_does_not_come_ends_the_connection(wire):
    wire.full = {b"/now"}
    wire.send(post(b"hello")[:-1])
    wire.wait(LIMITS.body_seconds + 1)
    assert (wire.statuses(), wire.transport.done[-1]) == ([429], "write_eof")


@pytest.mark.parametrize(
    "header", [b"Connection: close", b"Expect: 100-continue", b"Host: y", b"Transfer-Encoding: x"]
)
def test_a_request_that_ends_its_connection_is_not_refused_early(wire, header):
    wire.full = {b"/now"}
    wire.send(post(b"hello", header))
    assert 429 not in wire.statuses()


def test_an_early_refusal_waits_for_the_answers_before_it(wire):
    wire.full = {b"/now"}
    wire.send(GET % b"a" + GET % b"now")
    wire.answer("a")
    assert wire.bodies() == ["a", "now"]


def test_a_client_that_reads_no_refusals_is_not_refused_early(wire):
    wire.full = {b"/now"}
    wire.run(wire.connection.pause_writing)
    wire.send(GET % b"now")
    assert wire.take() == []


@pytest.mark.parametrize("full", [set(), {b"/now"}])
def test_an_idle_connection_is_closed(wire, full):
    wire.full = full
    wire.send(GET % b"now")
    wire.wait(LIMITS.idle_seconds - 1)
    assert wire.transport.done == []
    wire.wait(2)
    assert wire.transport.done == ["close"]


def test_an_answered_request_leaves_the_garbage_collector_nothing(wire):
    wire.send(post(b"hello"))
    gc.collect()
    wire.send(post(b"hello") * 10)
    assert gc.collect() < 60  # By cycles of references, 12 objects for each request.


def test_an_old_connection_is_closed_behind_an_answer(loop):
    wire = Wire(loop, HttpLimits(connection_seconds=100, idle_seconds=1000))
    wire.send(GET % b"now")
    wire.wait(99)
    wire.send(GET % b"now")
    wire.wait(12)
    assert [headers.get("connection") for _, headers, _ in wire.take()] == [None, None]
    wire.send(GET % b"a" + GET % b"b")
    wire.answer("a")
    wire.answer("b")  # It had been sent already.
    assert [headers.get("connection") for _, headers, _ in wire.take()] == [None, "close"]
    assert wire.transport.done[-1] == "write_eof"


def test_an_unready_server_answers_and_closes(wire):
    wire.service.is_unready = True
    wire.send(GET % b"now")
    ((status, headers, _),) = wire.take()
    assert (status, headers["connection"]) == (200, "close")


def test_a_stopping_server_answers_what_was_asked(wire):
    wire.send(GET % b"a" + GET % b"b" + b"GET /now HT")
    wire.service.is_stopping = True
    wire.run(lambda: wire.connection.shutdown(is_settled=False))
    wire.answer("a")
    assert [headers.get("connection") for _, headers, _ in wire.take()] == [None]
    wire.answer("b")
    assert [headers.get("connection") for _, headers, _ in wire.take()] == ["close"]


def test_a_stopping_server_waits_for_a_request_that_is_underway(wire):
    wire.send(b"GET /now HT")
    wire.service.is_stopping = True
    wire.run(wire.connection.shutdown)
    assert wire.transport.done == []
    wire.send(b"TP/1.1\r\nHost: x\r\n\r\n")
    ((_, headers, body),) = wire.take()
    assert (headers["connection"], body) == ("close", "now")


def test_an_idle_connection_is_closed_once_the_server_has_settled(wire):
    wire.run(lambda: wire.connection.shutdown(is_settled=False))
    assert wire.transport.done == []
    wire.run(wire.connection.shutdown)
    assert wire.transport.done == ["close"]


def test_a_client_that_does_not_read_is_not_answered_more(wire):
    wire.send(GET % b"a")
    wire.connection.pause_writing()
    wire.answer("a")
    wire.send(GET % b"b")
    assert list(wire.application.waiting) == ["a"]
    assert wire.bodies() == []
    wire.run(wire.connection.resume_writing)
    assert list(wire.application.waiting) == ["a", "b"]
    assert wire.bodies() == ["a"]


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
    wire.send(post(bytes(1000))[:-1000])
    for _ in range(seconds - 1):
        wire.send(bytes(rate))
        wire.wait(1)
    assert wire.take() == []
    wire.wait(2)
    wire.send(bytes(1000 - rate * (seconds - 1)))
    assert wire.statuses() == [status]


def test_a_client_that_computes_long_is_not_hurried(wire):
    wire.send(GET % b"a" + GET % b"b")
    wire.wait(100_000)
    wire.answer("a")
    wire.answer("b")
    assert wire.bodies() == ["a", "b"]


def test_a_connection_that_never_asked_is_closed_sooner(wire):
    wire.wait(LIMITS.header_seconds + 1)
    assert (wire.take(), wire.transport.done) == ([], ["close"])


def test_a_client_that_does_not_close_is_closed(wire):
    wire.send(b"nonsense\r\n\r\n")
    wire.wait(LIMITS.linger_seconds)
    assert wire.transport.done == ["write_eof"]
    wire.wait(1)
    assert wire.transport.done == ["write_eof", "abort"]
