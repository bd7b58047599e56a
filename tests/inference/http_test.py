"""The room as a whole: its application behind other servers, and requests that would hurt it.

The latter are small for a client and could be large for a server.
"""

import asyncio
import gc
import gzip
import logging
import random
import re
import sys
import threading
import time
import tracemalloc
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_deepseek.inference import HttpLimits, ServingEngine
from keras_deepseek.inference.http import body as body_module
from keras_deepseek.inference.protocols import open_inference, tf_serving
from tests.oracles.http_client import ask, connect, predict_request, read_all
from tests.oracles.rest_client import RestClient

pytest.importorskip("uvicorn")

PREDICT, INFER = "/v1/models/model:predict", "/v2/models/model/infer"
GZIP = {"Content-Encoding": "gzip"}


def zeros(count):
    return b'{"instances":[' + b"0," * count + b"0]}"


def post(path, body, *headers):
    lines = [f"POST {path} HTTP/1.1".encode(), b"Host: x", b"Connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def in_chunks(body, size):
    pieces = (body[i : i + size] for i in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def send(server, data):
    """Returns the answer to bytes that are sent on a connection of their own."""
    with connect(server) as connection:
        connection.sendall(data)
        return read_all(connection)


@pytest.fixture
def client(doubler):
    with ServingEngine(doubler) as engine:
        client = RestClient(engine.serve(0))
        yield client
        client.close()


def test_a_body_that_was_compressed_beyond_belief_is_refused(client):
    body = gzip.compress(zeros(1_000_000))
    answer = client.ask("POST", PREDICT, body, GZIP)
    assert (answer.status, "inflates to more than" in answer.content["error"]) == (413, True)
    assert len(body) * body_module.MAX_RATIO < 2_000_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PREDICT, zeros(1_000_000)),
        (PREDICT.replace("predict", "classify"), b'{"examples":[' + b"{}," * 1_000_000 + b"{}]}"),
        (INFER, b'{"inputs":[' + zeros(1_000_000) + b"]}"),
    ],
)
def test_more_values_than_a_model_can_take_are_refused_before_they_are_parsed(
    client, monkeypatch, path, body
):
    for module, name in ((tf_serving, "load_object"), (open_inference, "load_json")):
        monkeypatch.setattr(module, name, None)
    answer = client.ask("POST", path, body)
    assert (answer.status, "more values than 65536 rows" in answer.content["error"]) == (413, True)


@pytest.mark.parametrize("path", [PREDICT, PREDICT.replace("predict", "classify"), INFER])
def test_a_body_far_beyond_a_model_s_largest_request_is_not_even_read(client, path):
    answer = client.ask("POST", path, b"[" * 2**25)
    assert (answer.status, "The body is larger than" in answer.content["error"]) == (413, True)
    pytest.importorskip("prometheus_client")
    text = client.ask("GET", "/metrics").body.decode()
    assert 'requests_arrived_total{model="model"} 1.0' in text
    assert re.search(r'requests_total{.*model="model",.*status="413",version="1"} 1.0', text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PREDICT, b'{"instances":[["%b",0]%b]}'),
        (PREDICT, b'{"instances":[{"x":["%b",0%b]}]}'),
        (PREDICT, b'{"inputs":[["%b",0]%b]}'),
        (INFER, b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":["%b"%b]}]}'),
    ],
)
def test_a_long_string_among_numbers_takes_no_memory_for_each_of_these(client, path, body):
    body %= (b"a" * 10_000, b",0" * 1000)
    tracemalloc.start()
    try:
        answer = client.ask("POST", path, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status == 400
    assert peak < 4_000_000  # An array of 1,001 strings of 10,000 characters has 40 MB.


@pytest.mark.parametrize("name", ["inflate_body", "parse_predict", "parse_infer"])
def test_others_are_answered_while_a_large_body_is_read(doubler, monkeypatch, name):
    module = {"inflate_body": body_module, "parse_predict": tf_serving}.get(name, open_inference)
    began, may_end, function = threading.Event(), threading.Event(), getattr(module, name)

    def read_slowly(*arguments):
        began.set()
        assert may_end.wait(60)
        return function(*arguments)

    monkeypatch.setattr(module, name, read_slowly)
    path = INFER if name == "parse_infer" else PREDICT
    body, headers = b"[" + random.Random(5).randbytes(2**17).hex().encode(), {}
    if name == "inflate_body":
        body, headers = gzip.compress(body), GZIP
    with ServingEngine(doubler) as engine, ThreadPoolExecutor(1) as pool:
        server = engine.serve(0)
        slow, other = RestClient(server), RestClient(server)
        answer = pool.submit(slow.ask, "POST", path, body, headers)
        assert began.wait(60)
        assert other.ask("GET", "/v2/health/live").status == 200
        assert not answer.done()
        may_end.set()
        assert answer.result(60).status == 400
        slow.close()
        other.close()


@pytest.mark.parametrize("is_large", [False, True])
def test_a_client_that_hangs_up_leaves_no_connection(serve_http, doubler, is_large):
    # The server reads nothing behind pipelined requests, and while a large body waits.
    server = serve_http(max_connections=2, max_body_bytes=10**6, write_seconds=0.1)
    large = b'{"instances": [[1, 2]]%b}' % (b" " * 500_000)
    data = post(PREDICT, large, b"Content-Length: %d" % len(large))
    doubler.hold()
    with connect(server) as busy:
        busy.sendall(predict_request(1))
        assert doubler.entered.wait(60)
        with connect(server) as connection:
            connection.sendall(data if is_large else 2 * predict_request(1))
        doubler.release()
        end, status = time.monotonic() + 60, 503
        while status == 503:
            assert time.monotonic() < end
            other = RestClient(server)
            status = other.ask("GET", "/healthz").status
            other.close()
        assert status == 200


def test_closed_connections_leave_the_garbage_collector_nothing(doubler, caplog):
    caplog.set_level(logging.CRITICAL, "keras_deepseek")  # Records of the log have the tracebacks.
    late = b'{"parameters": {"timeout": 1}, "inputs": [{"name": "x", "shape": [1, 2], '
    late += b'"datatype": "FP32", "data": [1, 2]}]}'
    whole = (
        predict_request(1),
        predict_request(-1),  # The model fails.
        b"no request\r\n\r\n",
        post(INFER, late, b"Content-Length: %d" % len(late)),
    )
    with ServingEngine(doubler) as engine:
        server = engine.serve(0)
        ask(server, 1)
        gc.collect()
        gc.disable()
        try:
            for data in 10 * (*whole, predict_request(1)[:-9], predict_request(1)):
                with connect(server) as connection:
                    connection.sendall(data)
                    if data in whole:
                        assert connection.recv(1000).startswith(b"HTTP/1.1 ")
            ask(server, 1)
            assert (
                gc.collect() < 1000
            )  # By cycles of references it was 48 for each of 60 connections.
        finally:
            gc.enable()


def test_a_body_in_tiny_chunks_takes_little_more_than_its_size(doubler, monkeypatch):
    size, peaks, parse = 300_000, [], tf_serving.load_object

    def note_peak(*arguments):
        peaks.append(tracemalloc.get_traced_memory()[1])
        return parse(*arguments)

    monkeypatch.setattr(tf_serving, "load_object", note_peak)
    data = post(PREDICT, in_chunks(b" " * size, 2), b"Transfer-Encoding: chunked")
    with ServingEngine(doubler) as engine:
        server = engine.serve(0)
        tracemalloc.start()
        try:
            answer = send(server, data)
        finally:
            tracemalloc.stop()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert peaks[0] < 4 * size  # It was 28 times once.


@pytest.mark.parametrize("path", ["/nowhere", PREDICT, "/v2/health/live"])
def test_a_client_that_sends_on_behind_a_refusal_is_cut_off(doubler, path):
    with ServingEngine(doubler) as engine:
        limits = HttpLimits(linger_seconds=0.1)
        server = engine.serve(0, tokens=["secret"], max_body_bytes=100_000, limits=limits)
        with connect(server) as connection:
            head = post(path, b"", b"Content-Length: 999999999999")
            connection.sendall(head.replace(b"Connection: close\r\n", b""))
            assert connection.recv(100).startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 405 "))
            pieces = iter(lambda: connection.sendall(bytes(2**16)), True)  # They have no end.
            with pytest.raises(ConnectionError):
                deque(pieces, maxlen=0)


ATTACKS = {
    "nested": (b'{"instances":', b"[", b""),
    "string": (b'{"instances":["', b"a", b'"]}'),
    "escapes": (b'{"instances":["', rb"\u00e9", b'"]}'),
}


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize(
    ("name", "times", "most"),
    [
        ("61 MB of zeros as 61 kB of gzip", 20, 40),
        ("122 MB of zeros as 122 kB of gzip", 20, 40),
        ("64 MiB of zeros", 3, 200),
        ("1 byte more than 64 MiB, announced", 20, 10),
        ("64 MiB in chunks of 64 KiB, and 1 byte more", 1, 200),
        ("4 MiB in chunks of 2 bytes", 1, 40),
        ("nested 60 MB", 3, 40),
        ("nested 1 MB", 20, 40),
        ("string 60 MB", 3, 40),
        ("string 1 MB", 20, 40),
        ("escapes 60 MB", 3, 40),
        ("escapes 1 MB", 20, 40),
        ("100,000 pipelined requests", 1, 60),
        ("5,000 connections", 1, 100),
    ],
)
def test_an_attack_holds_nobody_up_and_takes_little_memory(name, times, most):
    from tests.oracles.served_process import ServedProcess

    data = attack(name)
    with ServedProcess() as server:
        for _ in range(times):
            if name == "5,000 connections":
                connections = [connect(server) for _ in range(5000)]
                for connection in connections:
                    connection.close()
                continue
            answer = send(server, data)
            assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 ", b"HTTP/1.1 200 "))
        milliseconds, megabytes = server.report(name)
    assert megabytes < most
    assert milliseconds < (100 if "MB" in name or "64 MiB" in name else 400)


def attack(name):
    """Returns the bytes of an attack that sends always the same."""
    first = name.partition(" ")[0]
    encoding, length = [], None
    if first in ("61", "122"):
        body, encoding = gzip.compress(zeros(int(first) * 500_000)), [b"Content-Encoding: gzip"]
    elif name == "64 MiB of zeros":
        body = zeros((2**26 - 20) // 2)
    elif first in ATTACKS:
        start, piece, end = ATTACKS[first]
        size = 60_000_000 if "60" in name else 1_000_000
        body = start + piece * (size // len(piece)) + end
    elif first == "1":
        body, length = b"", 2**26 + 1
    elif "chunks" in name:
        body = in_chunks(
            b" " * (2**22 if first == "4" else 2**26 + 1), 2 if first == "4" else 2**16
        )
        return post(PREDICT, body, b"Transfer-Encoding: chunked")
    else:
        return b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 100_000 + post("/", b"")
    return post(PREDICT, body, b"Content-Length: %d" % (length or len(body)), *encoding)


@pytest.fixture
def engine(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        yield engine


def test_httpx_asks_it_without_a_port(engine):
    httpx = pytest.importorskip("httpx")

    async def ask():
        transport = httpx.ASGITransport(engine.asgi_app(tokens=["secret"]))
        headers = {"Authorization": "Bearer secret"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            refused = await client.get("/v1/models/model")
            single = await client.post(PREDICT, json={"instances": [[1, 2]]}, headers=headers)
            body = gzip.compress(b'{"instances": [[3, 4]]}')
            headers["Content-Encoding"] = "gzip"
            two = await client.post(PREDICT, content=body, headers=headers)
            head = await client.head("/v2/health/ready")
            options = await client.options("/v2/health/ready")
        return refused, single, two, head, options

    refused, single, two, head, options = asyncio.run(ask())
    assert refused.status_code == 401
    assert single.json() == {"predictions": [[2.0, 4.0]]}
    assert two.json() == {"predictions": [[6.0, 8.0]]}
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "14")
    assert (options.status_code, options.headers["allow"]) == (405, "GET, HEAD")


def test_fastapi_mounts_it(engine):
    fastapi = pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    app = fastapi.FastAPI()
    app.mount("/served", engine.asgi_app())

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post(f"/served{PREDICT}", json={"instances": [[1, 2]]})
            page = await client.get("/served/")
            missing = await client.get("/served/nowhere")
            document = await client.get("/served/openapi.json")
        return answer, page, missing, document

    answer, page, missing, document = asyncio.run(ask())
    assert document.json()["servers"] == [{"url": "/served"}]
    assert answer.json() == {"predictions": [[2.0, 4.0]]}
    assert page.headers["content-type"].startswith("text/html")
    assert "There is no path '/nowhere'" in missing.json()["error"]


def scope_of(path=PREDICT, **fields):
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "http_version": "1.1"}
    return {**scope, **fields}


def call(app, scope, *messages, then=None):
    """Returns what the application sends. `then` is waited for before the client hangs up."""

    async def run():
        waiting, sent = list(messages), []

        async def receive():
            if waiting:
                return waiting.pop(0)
            if then is None:
                await asyncio.get_running_loop().create_future()
            await asyncio.to_thread(then)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return sent

    return asyncio.run(run())


def test_a_body_may_come_in_pieces(engine):
    pieces = [b'{"instances"', b": [[1", b"", b", 2]]}"]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    sent = call(engine.asgi_app(), scope_of(), *messages, {"type": "http.request"})
    assert (sent[0]["status"], sent[1]["body"]) == (200, b'{"predictions":[[2.0,4.0]]}')


def test_a_body_is_counted_as_it_comes(engine):
    app = engine.asgi_app(max_body_bytes=10)
    piece = {"type": "http.request", "body": b"x" * 6, "more_body": True}
    assert call(app, scope_of(), piece, piece)[0]["status"] == 413
    assert call(app, scope_of(headers=[(b"content-length", b"11")]))[0]["status"] == 413


def test_a_client_that_hangs_up_leaves_the_queue(engine, doubler):
    doubler.hold()
    first = engine.submit([[1, 1]])
    assert doubler.entered.wait(60)
    body = {"type": "http.request", "body": b'{"instances": [[7, 7]]}'}
    app = engine.asgi_app()
    assert call(app, scope_of(), body, then=lambda: None) == []
    assert engine.statistics().waiting_rows == 0
    assert call(app, scope_of(), {"type": "http.disconnect"}) == []
    doubler.release()
    first.result()
    assert 7 not in doubler.rows_seen
    assert engine.monitor.answers()[("model", "1", "tf_serving", "predict"), "499"] == 2


def live(app, *messages):
    return call(app, {"type": "lifespan"}, *({"type": f"lifespan.{name}"} for name in messages))


def test_a_server_s_lifespan_starts_the_engine_and_closes_it(doubler):
    engine = ServingEngine(doubler, warm_up=False)
    sent = live(engine.asgi_app(), "startup", "shutdown")
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert engine.repository.state == "closed"
    (failed,) = live(engine.asgi_app(), "startup")
    assert failed["type"] == "lifespan.startup.failed"
    assert "closed" in failed["message"]


def test_an_engine_that_ran_before_goes_on(engine):
    live(engine.asgi_app(), "startup", "shutdown")
    assert engine.ready


def test_another_kind_of_connection_is_refused(engine):
    with pytest.raises(ValueError, match="Expected an HTTP request, received ASGI's 'websocket'"):
        call(engine.asgi_app(), {"type": "websocket"})
