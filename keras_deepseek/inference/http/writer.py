"""Encodes responses as bytes."""

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from keras_deepseek.inference.http.message import HttpResponse

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_JOIN_BYTES = 2**16
"""Larger bodies are written separately: that costs less than to copy them."""


def encode_response(
    response: HttpResponse, connection: str | None = None, *, with_body: bool = True
) -> list[bytes]:
    """Returns the bytes of a response, in one piece or two; without the body for HEAD.

    `connection` is the header `Connection`, or `None` for no such header. Raises `ValueError` if a
    header has a line break.
    """
    body = response.body
    head = b"%b%d\r\ndate: %b\r\n" % (
        _first_lines(response.status, response.content_type),
        len(body),
        _date(int(time.time())),
    )
    if connection is not None:
        head += b"connection: %b\r\n" % connection.encode()
    for name, value in response.headers:
        line = f"{name}: {value}"
        if "\r" in line or "\n" in line:
            raise ValueError(f"Expected a header without line breaks, received {line!r}.")
        head += line.encode("latin-1") + b"\r\n"
    if not with_body:
        return [head + b"\r\n"]
    if len(body) <= _JOIN_BYTES:
        return [head + b"\r\n" + body]
    return [head + b"\r\n", body]


@lru_cache(256)
def _first_lines(status: int, content_type: str) -> bytes:
    phrase = HTTPStatus(status).phrase
    text = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: {content_type}\r\ncontent-length: "
    return text.encode("latin-1")


@lru_cache(2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
