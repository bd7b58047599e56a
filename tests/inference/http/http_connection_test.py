import gzip
import socket

import pytest

pytest.importorskip("httptools")

from keras_deepseek.inference.http.http_connection import probe_dead_peers
from tests.oracles.http_wire import GET, LIMITS, Wire, post


def test_an_answer_is_written_and_the_connection_stays_open(wire):
    wire.send(post(b"hello"))
    ((status, headers, body),) = wire.take()
    assert (status, body) == (200, "hello")
    assert "connection" not in headers
    wire.send(GET % b"now")
    assert wire.bodies() == ["now"]
    assert wire.transport.done == []


def test_a_stream_of_requests_may_be_split_at_every_position(loop):
    stream = GET % b"now" + post(b"hello") + GET % b"now"
    for position in range(len(stream) + 1):
        wire = Wire(loop)
        wire.send(stream[:position], stream[position:])
        assert wire.bodies() == ["now", "hello", "now"]
    wire = Wire(loop)
    wire.send(*(stream[i : i + 1] for i in range(len(stream))))
    assert wire.bodies() == ["now", "hello", "now"]


def test_pipelined_requests_are_computed_together_and_answered_in_their_order(wire):
    wire.send(GET % b"a" + GET % b"now" + GET % b"b")
    assert list(wire.application.waiting) == ["a", "b"]
    wire.answer("b")
    assert wire.bodies() == []
    wire.answer("a")
    assert wire.bodies() == ["a", "now", "b"]


def test_a_client_that_pipelines_much_waits(wire):
    wire.send(b"".join(GET % b"%d" % i for i in range(5)))
    assert list(wire.application.waiting) == ["0", "1", "2"]
    assert wire.transport.done == ["pause_reading"]
    wire.answer("0")
    assert list(wire.application.waiting) == ["0", "1", "2", "3"]
    wire.answer("1")
    assert wire.transport.done == ["pause_reading"]
    for name in "234":
        wire.answer(name)
    assert wire.transport.done == ["pause_reading", "resume_reading"]
    assert wire.bodies() == ["0", "1", "2", "3", "4"]


def test_a_refusal_comes_after_the_answers_before_it_and_is_the_last(wire):
    wire.send(GET % b"a" + b"nonsense\r\n\r\n" + GET % b"now")
    assert wire.bodies() == []
    wire.answer("a")
    (_, first, body), (status, last, _) = wire.take()
    assert (body, status) == ("a", 400)
    assert "connection" not in first
    assert last["connection"] == "close"
    assert wire.transport.done == ["write_eof"]  # What still comes must not reset the connection.
    wire.send(GET % b"now")
    assert wire.take() == []


def test_a_fault_of_the_application_is_answered_and_harms_nothing_else(wire):
    wire.send(GET % b"fault" + GET % b"a" + GET % b"now")
    wire.answer("a", ArithmeticError("a secret"))
    assert wire.take()[0][2] == "ArithmeticError"
    wire.send(GET % b"now")
    assert wire.statuses() == [200]


def test_a_client_that_hangs_up_cancels_its_requests(wire):
    wire.send(GET % b"a" + GET % b"b" + GET % b"c" + GET % b"d")
    assert wire.connection.eof_received() is False  # The transport closes itself.
    assert wire.application.cancelled == ["a", "b", "c"]
    wire.connection.connection_lost(None)
    assert (wire.take(), len(wire.connections)) == ([], 0)


def test_a_lost_connection_cancels_its_requests_and_an_answer_that_comes_late_is_dropped(wire):
    wire.send(GET % b"a" + GET % b"b" + GET % b"c")
    wire.answer("b")  # It waits for the answer to the one before.
    wire.connection.connection_lost(ConnectionResetError())
    assert wire.application.cancelled == ["a", "c"]
    wire.answer("a", ArithmeticError())
    wire.answer("c")
    assert wire.take() == []


def test_head_is_answered_without_a_body(wire):
    wire.send(b"HEAD /now HTTP/1.1\r\nHost: x\r\n\r\n")
    assert wire.transport.written.endswith(b"\r\n\r\n")
    assert b"content-length: 3\r\n" in wire.transport.written


def test_the_client_decides_whether_the_connection_is_kept(loop):
    for head, word, done in (
        (b"GET /now HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "close", ["close"]),
        (b"GET /now HTTP/1.0\r\n\r\n", "close", ["close"]),
        (b"GET /now HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "keep-alive", []),
    ):
        wire = Wire(loop)
        wire.send(head)
        assert wire.take()[0][1]["connection"] == word
        assert wire.transport.done == done


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


def test_a_client_that_was_refused_is_not_told_to_go_on(wire):
    wire.send(GET % b"a" + post(b"hello", b"Expect: 100-continue")[:-5])
    wire.wait(LIMITS.body_seconds + 1)
    wire.answer("a")
    assert wire.statuses() == [200, 408]


def test_a_client_whose_body_would_be_too_large_is_not_told_to_go_on(wire):
    wire.send(
        b"POST /now HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n"
    )
    assert wire.statuses() == [413]
    assert wire.transport.done == ["write_eof"]


def test_a_client_that_may_not_ask_is_refused_before_its_body_is_inflated(wire):
    head = (
        b"POST /secret HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n"
    )
    wire.send(head + b"hello")
    assert wire.take()[0][0] == 401
    assert wire.application.requests == []


def test_the_end_of_each_request_is_noted_once(wire):
    wire.send(GET % b"now" + GET % b"a" + GET % b"b")
    wire.answer("a")
    wire.connection.eof_received()
    wire.connection.connection_lost(None)
    assert wire.application.ended == [("/now", 200), ("/a", 200), ("/b", None)]


def test_the_end_of_what_is_no_request_is_noted(wire):
    wire.send(b"nonsense\r\n\r\n")
    assert wire.application.ended == [(None, 400)]


def test_compressed_bodies_are_inflated_and_bombs_refused(wire):
    wire.send(post(gzip.compress(b"hello"), b"Content-Encoding: gzip"))
    assert wire.bodies() == ["hello"]
    wire.send(post(gzip.compress(bytes(100_000)), b"Content-Encoding: gzip"))
    assert wire.statuses() == [413]
    wire.send(post(b"hello", b"Content-Encoding: gzip"))
    assert wire.statuses() == [400]
    assert len(wire.application.requests) == 1


def test_the_request_tells_who_sent_it(loop):
    certificate = {"subject": ((("organizationName", "a"),), (("commonName", "b"),))}
    wire = Wire(loop, peername=("10.0.0.1", 5), peercert=certificate)
    wire.send(GET % b"now")
    (request,) = wire.application.requests
    assert request.client == "10.0.0.1"
    assert request.peer_subject == (("organizationName", "a"), ("commonName", "b"))


def test_a_draining_connection_ends_after_what_it_was_asked(wire):
    wire.send(GET % b"a" + GET % b"b" + b"GET /now HT")
    wire.connection.start_draining()
    wire.connection.close_if_idle()
    assert wire.transport.done == []
    wire.answer("a")
    wire.answer("b")
    assert [headers.get("connection") for _, headers, _ in wire.take()] == [None, None]
    wire.connection.close_if_idle()
    wire.send(b"TP/1.1\r\nHost: x\r\n\r\n")
    ((_, headers, body),) = wire.take()
    assert (headers["connection"], body) == ("close", "now")
    assert wire.transport.done == ["write_eof"]


def test_an_idle_draining_connection_is_closed(wire):
    wire.connection.close_if_idle()
    assert wire.transport.done == ["close"]
    wire.connection.connection_lost(None)
    wire.connection.close_if_idle()
    wire.connection.abort()
    wire.connection.check_time()
    assert wire.transport.done == ["close"]


def test_the_kernel_is_asked_to_probe_a_silent_client():
    with socket.socket() as client:
        probe_dead_peers(client)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    probe_dead_peers(None)
