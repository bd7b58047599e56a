import http.client
import io
import re

import pytest

from keras_deepseek.inference.http import writer
from keras_deepseek.inference.http.message import HttpResponse
from keras_deepseek.inference.http.writer import encode_response


class _Socket:
    def __init__(self, data):
        self._data = data

    def makefile(self, _mode):
        return io.BytesIO(self._data)


def read(pieces):
    """Reads bytes as Python's own client does."""
    response = http.client.HTTPResponse(_Socket(b"".join(pieces)))
    response.begin()
    return response, response.read()


def test_a_response_is_read_back_by_a_client():
    response, body = read(
        encode_response(HttpResponse(429, b"later", "text/plain", (("Retry-After", "1"),)))
    )
    assert (response.status, response.reason, body) == (429, "Too Many Requests", b"later")
    assert response.headers["Content-Type"] == "text/plain"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Connection"] is None
    assert response.version == 11


def test_the_date_is_in_the_one_form_that_http_has(monkeypatch):
    monkeypatch.setattr(writer.time, "time", lambda: 784111777.9)
    response, _ = read(encode_response(HttpResponse()))
    assert response.headers["Date"] == "Sun, 06 Nov 1994 08:49:37 GMT"
    monkeypatch.setattr(writer.time, "time", lambda: 784111778.0)
    response, _ = read(encode_response(HttpResponse()))
    assert response.headers["Date"] == "Sun, 06 Nov 1994 08:49:38 GMT"


def test_connection_is_told_where_it_is_asked_for():
    response, _ = read(encode_response(HttpResponse(body=b"x"), "close"))
    assert response.headers["Connection"] == "close"


def test_the_answer_to_head_has_the_length_and_no_body():
    (head,) = encode_response(HttpResponse(body=b"12345"), with_body=False)
    assert b"content-length: 5\r\n" in head
    assert head.endswith(b"\r\n\r\n")
    assert b"12345" not in head


def test_a_large_body_is_not_copied():
    body = bytes(100_000)
    pieces = encode_response(HttpResponse(body=body))
    assert pieces[1] is body
    assert read(pieces)[1] == body


@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: x", "a\nb", "a\rb"])
def test_a_header_that_would_begin_another_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(repr(f"x: {text}"))):
        encode_response(HttpResponse(headers=(("x", text),)))
