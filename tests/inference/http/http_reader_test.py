import random

import pytest

pytest.importorskip("httptools")

from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.http_reader import BODY, HEAD, IDLE, HttpReader
from keras_deepseek.inference.http.message import HttpError, HttpRequest

POST = b"POST /v1/models/m:predict?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;note=x\r\nab\r\n3\r\ncde\r\n0\r\nHost: evil\r\n\r\n"
)
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def make_reader(max_body_bytes=100, **limits):
    return HttpReader(HttpLimits(**limits), max_body_bytes)


def refuse(data, **limits):
    """Returns the refusal of what is fed, whole and byte by byte."""
    refusals = []
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        reader = make_reader(**limits)
        *before, refusal = [item for piece in pieces for item in reader.feed(piece)]
        assert isinstance(refusal, HttpError)
        assert not before
        assert reader.is_done
        assert reader.feed(GET) == []
        refusals.append(refusal)
    assert refusals[0].status == refusals[1].status
    return refusals[0]


def test_a_request_is_read():
    reader = make_reader()
    reader.client = "127.0.0.1"
    (request,) = reader.feed(POST)
    assert request == HttpRequest(
        "POST",
        "/v1/models/m:predict",
        "a=b",
        {"host": "x", "content-length": "5"},
        b"hello",
        "127.0.0.1",
    )


def test_bytes_may_be_split_at_every_position():
    stream = POST + CHUNKED + GET
    whole = make_reader().feed(stream)
    assert [request.body for request in whole] == [b"hello", b"abcde", b""]
    for position in range(len(stream) + 1):
        reader = make_reader()
        halves = reader.feed(stream[:position]) + reader.feed(stream[position:])
        assert halves == whole
        assert reader.phase == IDLE
    reader = make_reader()
    assert [item for byte in stream for item in reader.feed(bytes([byte]))] == whole


def test_a_trailer_replaces_no_header():
    (request,) = make_reader().feed(CHUNKED)
    assert request.headers["host"] == "x"


def test_the_phases_are_told_and_counted():
    reader = make_reader()
    seen = [(reader.phase, reader.steps)]
    for piece in (POST[:5], POST[5:-3], POST[-3:-1], POST[-1:]):
        reader.feed(piece)
        seen.append((reader.phase, reader.steps))
    assert seen == [(IDLE, 0), (HEAD, 1), (BODY, 2), (BODY, 2), (IDLE, 3)]
    assert reader.body_bytes == 5


def test_a_refused_body_names_the_path_of_its_request_and_a_refused_head_does_not():
    head = b"POST /a%20b?c HTTP/1.1\r\nHost: x\r\n"
    assert refuse(head + b"Content-Length: 101\r\n\r\n").path == "/a b"
    assert refuse(head + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n").path == "/a b"
    assert refuse(head + b"no header\r\n\r\n").path == ""
    reader = make_reader()
    assert reader.feed(POST + b"nonsense\r\n\r\n")[1].path == ""


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/a%20b%2Fc?d%20", "/a b/c", "d%20"),
        (b"http://host:80/a?b", "/a", "b"),
        (b"http://host?b", "/", "b"),
        (b"http://host", "/", ""),
        (b"/a?b?c=http://d", "/a", "b?c=http://d"),
        (b"/%ff", "/\ufffd", ""),
        (b"*", "*", ""),
    ],
)
def test_a_target_is_split_and_decoded(target, path, query):
    (request,) = make_reader().feed(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (request.path, request.query) == (path, query)


def test_repeated_headers_are_joined_and_names_are_in_lower_case():
    (request,) = make_reader().feed(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-a: 2\r\n\r\n")
    assert request.headers["x-a"] == "1, 2"


@pytest.mark.parametrize(
    ("head", "keep_alive", "is_old"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True, False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False, False),
        (b"GET / HTTP/1.0\r\n\r\n", False, True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True, True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", False, False),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", False, False),
    ],
)
def test_the_last_request_of_a_client_is_known(head, keep_alive, is_old):
    reader = make_reader()
    request, *others = reader.feed(head + GET)
    assert len(others) == int(keep_alive)
    assert (request.keep_alive, request.is_old) == (keep_alive, is_old)
    assert reader.is_done is not keep_alive


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (POST[: -len(b"\r\nhello")] + b"Transfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: a cake\r\nContent-Length: 1\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n" + bytes(101),
            413,
        ),
    ],
)
def test_what_is_malformed_or_too_large_is_refused(data, status):
    assert refuse(data).status == status


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
def test_a_head_without_end_is_refused(data):
    reader = make_reader(max_header_bytes=500)
    refusals = [item for byte in data for item in reader.feed(bytes([byte]))]
    assert [refusal.status for refusal in refusals] == [431]


def test_headers_are_counted():
    head = b"GET / HTTP/1.1\r\nHost: x\r\n"
    assert make_reader(max_header_fields=5).feed(head + b"a: b\r\n" * 4 + b"\r\n")
    assert refuse(head + b"a: b\r\n" * 5 + b"\r\n", max_header_fields=5).status == 431


def test_a_body_in_small_pieces_is_no_head_without_end():
    reader = make_reader(max_body_bytes=10_000, max_header_bytes=100)
    reader.feed(CHUNKED[: CHUNKED.index(b"2;")])
    for _ in range(1000):
        for piece in (b"1", b"\r\n", b"a", b"\r\n"):
            assert reader.feed(piece) == []
    (request,) = reader.feed(b"0\r\n\r\n")
    assert request.body == b"a" * 1000


def test_a_refusal_comes_after_the_requests_before_it():
    first, second, refusal = make_reader().feed(GET + POST + b"nonsense\r\n\r\n" + GET)
    assert (first.method, second.method, refusal.status) == ("GET", "POST", 400)


def test_a_client_that_waits_to_be_told_to_go_on_is_noticed():
    reader = make_reader()
    head = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n"
    reader.feed(head)
    assert reader.wants_continue
    reader.feed(b"a")
    assert not reader.wants_continue
    assert len(reader.feed(b"b")) == 1
    reader.feed(head + b"ab")
    assert not reader.wants_continue


def test_random_bytes_raise_nothing():
    source = random.Random(7)
    for _ in range(300):
        reader = make_reader()
        items = reader.feed(GET * source.randrange(2) + source.randbytes(1000))
        assert all(isinstance(item, HttpRequest | HttpError) for item in items)


def test_damaged_requests_raise_nothing():
    source = random.Random(11)
    for _ in range(3000):
        data = bytearray(POST + CHUNKED + GET)
        for _ in range(source.randrange(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        items = make_reader().feed(bytes(data))
        assert all(isinstance(item, HttpRequest) for item in items[:-1])
