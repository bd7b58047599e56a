"""Requests that are small for a client and could be large for a server."""

import gzip
import random
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.http import body as body_module
from keras_deepseek.inference.protocols import open_inference, tf_serving
from tests.oracles.http_client import connect, read_all
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
        (PREDICT, zeros(200_000)),
        (PREDICT.replace("predict", "classify"), b'{"examples":[' + b"{}," * 200_000 + b"{}]}"),
        (INFER, b'{"inputs":[' + zeros(200_000) + b"]}"),
    ],
)
def test_more_values_than_a_model_can_take_are_refused_before_they_are_parsed(
    client, monkeypatch, path, body
):
    for module, name in ((tf_serving, "load_object"), (open_inference, "load_json")):
        monkeypatch.setattr(module, name, None)
    answer = client.ask("POST", path, body)
    assert (answer.status, "more values than 1024 rows" in answer.content["error"]) == (413, True)


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
    assert milliseconds < (100 if data else 500)  # As many clients as connections take their turn.


def attack(name):
    """Returns the bytes of an attack that sends always the same."""
    first = name.partition(" ")[0]
    encoding, length = [], None
    if first in ("61", "122"):
        body, encoding = gzip.compress(zeros(int(first) * 500_000)), [b"Content-Encoding: gzip"]
    elif name == "64 MiB of zeros":
        body = zeros((2**26 - 20) // 2)
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
