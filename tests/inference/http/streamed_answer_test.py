"""Answers that are sent while they are made, as `GET /stream/NAME`, over raw HTTP."""

import asyncio
import json
import logging
import socket
import threading
import time

import pytest

from keras_deepseek.inference import HttpServer, ServingEngine
from keras_deepseek.inference.errors import OverloadedError
from keras_deepseek.inference.http import http_application
from keras_deepseek.inference.http.http_application import HttpApplication
from keras_deepseek.inference.http.message import HttpResponse
from keras_deepseek.inference.http.routing import Route
from keras_deepseek.inference.monitoring.access_log import LOGGER
from tests.inference.conftest import service_of

pytest.importorskip("uvicorn")


class Source:
    """The pieces of one answer, which are made when they are put in, or without end."""

    def __init__(self):
        self.num_pieces = 0
        self.endless = b""
        self.is_closed = threading.Event()
        self._pieces: asyncio.Queue = asyncio.Queue()
        self._loop = None

    def put(self, *pieces):
        for piece in pieces:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def __aiter__(self):
        return self

    async def __anext__(self):
        self._loop = asyncio.get_running_loop()
        piece = self.endless or await self._pieces.get()
        if piece is None:
            raise StopAsyncIteration
        if isinstance(piece, Exception):
            raise piece
        self.num_pieces += 1
        return piece

    async def aclose(self):
        self.is_closed.set()


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def engine(doubler, source, monkeypatch):
    async def answer(service, request):
        return HttpResponse(
            content_type="text/plain", stream=source, frame=lambda piece: b"[%b]" % piece
        )

    route = Route("GET", "/stream/{name}", answer, "stream", "answer")
    monkeypatch.setattr(http_application, "ROUTES", (*http_application.ROUTES, route))
    with ServingEngine(doubler, name="double", warm_up=False) as engine:
        yield engine


@pytest.fixture
def open_server(engine):
    servers = []

    def open_server(**options):
        server = HttpServer(service_of(engine, **options))
        server.start()
        servers.append(server)
        return server

    yield open_server
    for server in servers:
        server.stop()


@pytest.fixture
def connect(open_server):
    sockets = []

    def connect(request=b"GET /stream/a HTTP/1.1\r\nHost: a\r\n\r\n", **options):
        server = open_server(**options)
        connection = socket.create_connection((server.host, server.port), timeout=60)
        connection.sendall(request)
        sockets.append(connection)
        return connection

    yield connect
    for connection in sockets:
        connection.close()


def read_until(connection, end):
    data = b""
    while not data.endswith(end):
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return data


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def statuses(engine):
    return [status for called, status in engine.monitor.answers() if called[2] == "stream"]


def test_each_piece_comes_when_it_is_made_and_the_connection_stays(connect, source, engine):
    connection = connect()
    wait_until(lambda: source._loop)
    source.put(b"one")
    head, _, _ = read_until(connection, b"5\r\n[one]\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"transfer-encoding: chunked" in head
    assert b"content-length" not in head
    assert statuses(engine) == []  # It is recorded at its end.
    source.put(b"two", None)
    assert read_until(connection, b"0\r\n\r\n") == b"5\r\n[two]\r\n0\r\n\r\n"
    wait_until(lambda: statuses(engine))
    assert statuses(engine) == ["200"]
    assert source.is_closed.is_set()
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert read_until(connection, b"}").startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OverloadedError("There is no room"), "429", "There is no room. Try again in 1 s."),
        (ValueError("a secret of the server"), "500", "The server failed; see its log."),
    ],
)
def test_an_error_is_the_last_piece_of_a_whole_answer(
    connect, source, engine, error, status, message
):
    connection = connect()
    wait_until(lambda: source._loop)
    source.put(b"one", error)
    body = read_until(connection, b"0\r\n\r\n").partition(b"[one]\r\n")[2]
    assert json.loads(body.split(b"\r\n")[1][1:-1]) == {"error": message}
    wait_until(lambda: statuses(engine))
    assert statuses(engine) == [status]


def test_a_client_that_reads_nothing_stops_the_source(connect, source, engine):
    source.endless = b"x" * 65536
    connection = connect()
    wait_until(lambda: source.num_pieces > 2)
    number = 0
    while number < source.num_pieces:  # Until the buffers are full.
        number = source.num_pieces
        time.sleep(0.05)
    assert number < 400  # 25 MB; the system's buffers for loopback take a few.
    connection.close()
    assert source.is_closed.wait(60)
    wait_until(lambda: statuses(engine))
    assert statuses(engine) == ["499"]


def test_the_log_has_the_bytes_and_the_id_of_a_streamed_answer(connect, source, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        connection = connect(
            b"GET /stream/a HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n\r\n", access_log=True
        )
        wait_until(lambda: source._loop)
        source.put(b"one", b"two", None)
        assert b"x-request-id: mine" in read_until(connection, b"0\r\n\r\n")
        wait_until(lambda: caplog.messages)
    line = json.loads(caplog.messages[0])
    assert (line["bytes"], line["status"], line["request_id"]) == (10, 200, "mine")


def test_a_client_that_hangs_up_ends_the_wait_for_the_next_piece(connect, source, engine, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        connection = connect(access_log=True)
        wait_until(lambda: source._loop)
        source.put(b"one")
        read_until(connection, b"[one]\r\n")
        connection.close()
        assert source.is_closed.wait(60)
        wait_until(lambda: caplog.messages)
    line = json.loads(caplog.messages[0])
    assert (line["bytes"], line["status"]) == (5, 499)


def test_the_end_of_the_connection_ends_an_answer_to_http_1_0(connect, source):
    connection = connect(b"GET /stream/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    wait_until(lambda: source._loop)
    source.put(b"one", b"two", None)
    head, _, body = read_until(connection, b"[two]").partition(b"\r\n\r\n")
    assert body == b"[one][two]"
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert connection.recv(1) == b""


def test_head_gets_no_piece(connect, source):
    connection = connect(b"HEAD /stream/a HTTP/1.1\r\nHost: a\r\n\r\n")
    read_until(connection, b"\r\n\r\n")
    assert source.is_closed.wait(60)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert read_until(connection, b"}").startswith(b"HTTP/1.1 200 OK")


def test_a_stopping_server_ends_a_streamed_answer_with_an_error(open_server, source):
    server = open_server(grace_seconds=0.2, settle_seconds=0.01)
    with socket.create_connection((server.host, server.port), timeout=60) as connection:
        connection.sendall(b"GET /stream/a HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: source._loop)
        source.put(b"one")
        read_until(connection, b"[one]\r\n")
        server.stop()
        assert b"The server stops" in read_until(connection, b"0\r\n\r\n")


def test_a_stopping_server_lets_a_streamed_answer_end(open_server, source):
    server = open_server(settle_seconds=0.01)
    with socket.create_connection((server.host, server.port), timeout=60) as connection:
        connection.sendall(b"GET /stream/a HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: source._loop)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        wait_until(lambda: server.service.is_stopping)
        source.put(b"one", None)
        assert read_until(connection, b"0\r\n\r\n").endswith(b"5\r\n[one]\r\n0\r\n\r\n")
        stopping.join()


def scope_of(path):
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [],
        "http_version": "1.0",
        "client": None,
    }


def test_another_server_streams_too_and_its_hang_ups_are_noticed(engine, source):
    async def run():
        sent, is_gone = [], asyncio.Event()

        async def receive():
            await is_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if message.get("body") == b"[one]":
                is_gone.set()

        answering = asyncio.create_task(
            HttpApplication(service_of(engine))(scope_of("/stream/a"), receive, send)
        )
        await asyncio.sleep(0)
        source._pieces.put_nowait(b"one")
        await answering
        return sent

    sent = asyncio.run(asyncio.wait_for(run(), 60))
    assert [message.get("body") for message in sent] == [None, b"[one]"]
    assert source.is_closed.is_set()
    assert statuses(engine) == ["499"]
