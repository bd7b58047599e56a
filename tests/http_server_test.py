import http.client
import json
import socket
import time
from contextlib import contextmanager
from http import HTTPStatus

import pytest

from keras_deepseek.http_server import (
    LOOPBACK_HOSTS,
    Response,
    SmallHttpServer,
    is_host_allowed,
    refuse,
)


@contextmanager
def serving(respond, **options):
    server = SmallHttpServer(respond, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def echo(request):
    body = None if request.body is None else request.body.decode()
    content = {"method": request.method, "path": request.path, "body": body}
    return Response(HTTPStatus.OK, json.dumps(content).encode(), headers={"X-More": "1"})


def ask(connection, method, path, body=None, **headers):
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


def test_requests_of_one_connection_are_answered():
    with serving(echo, name="Echo", headers={"X-All": "2"}, max_body_bytes=3) as server:
        assert server.server_address[0] == "127.0.0.1"
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.connect()
        first_socket = connection.sock
        status, headers, text = ask(connection, "GET", "/a/b?c=d")
        assert (status, json.loads(text)) == (200, {"method": "GET", "path": "/a/b", "body": ""})
        assert (headers["Server"], headers["X-All"], headers["X-More"]) == ("Echo", "2", "1")
        assert json.loads(ask(connection, "PUT", "/", "abc")[2])["body"] == "abc"
        status, headers, text = ask(connection, "HEAD", "/")
        assert (status, text, int(headers["Content-Length"]) > 0) == (200, "", True)
        assert connection.sock is first_socket
        connection.close()


@pytest.mark.parametrize(
    ("body", "headers"),
    [("four", {}), (iter([b"a"]), {}), ("a", {"Content-Length": "\xb2"})],
    ids=["too long", "chunked", "no number"],
)
def test_a_body_without_an_allowed_length_ends_the_connection(body, headers):
    with serving(echo, max_body_bytes=3) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        assert json.loads(ask(connection, "POST", "/", body, **headers)[2])["body"] is None
        assert connection.sock is None or connection.sock.recv(1) == b""
        connection.close()


def test_a_client_that_still_sends_a_refused_body_gets_the_answer():
    with (
        serving(echo, max_body_bytes=3) as server,
        socket.create_connection(("127.0.0.1", server.server_port), 10) as connection,
    ):
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 400000\r\n\r\n")
        for _ in range(4):
            time.sleep(0.02)
            connection.sendall(bytes(100_000))
        assert b'"body": null' in connection.makefile("rb").read()


@pytest.mark.parametrize(
    ("line", "status"), [(b"\x00" * 100, b"400"), (b"BREW /pot HTTP/1.1", b"501")]
)
def test_what_is_not_http_is_refused_as_json(line, status):
    with (
        serving(echo) as server,
        socket.create_connection(("127.0.0.1", server.server_port), 10) as connection,
    ):
        connection.sendall(line + b"\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
        assert status in head.partition(b"\r\n")[0]
        assert "error" in json.loads(body)


def test_a_failed_response_is_logged_and_the_next_request_answered(caplog):
    def respond(request):
        return refuse(HTTPStatus.NOT_FOUND, "Gone.") if request.path == "/" else 1 / 0

    with serving(respond, name="Test") as server:
        with pytest.raises(http.client.RemoteDisconnected):
            ask(http.client.HTTPConnection("127.0.0.1", server.server_port), "GET", "/fail")
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        assert ask(connection, "GET", "/")[2] == '{"error": "Gone."}'
        connection.close()
    assert "A request to Test failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_stop_frees_the_port_although_a_client_is_silent():
    with serving(echo) as server, socket.create_connection(server.server_address) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\n")
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.server_address)


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("localhost:6006", True),
        ("[::1]:1", True),
        ("a.hub.example", True),
        ("evil.example", False),
        ("localhost.evil.example:6006", False),
        ("evilhub.example", False),
        ("", False),
    ],
)
def test_other_host_names_are_not_allowed(host, is_allowed):
    assert is_host_allowed(host, (*LOOPBACK_HOSTS, ".hub.example")) == is_allowed
