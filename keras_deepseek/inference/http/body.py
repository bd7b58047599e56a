"""Reads and decompresses the bodies of requests, up to limits."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar, cast

from keras_deepseek.inference.http.message import ClientDisconnectError, HttpError, HttpRequest

THREAD_BYTES = 2**16
"""Larger bodies are decompressed and parsed on a thread, so that other requests don't wait."""

MAX_INFLATED_BYTES = 16 * 2**20
"""The most bytes of a decompressed body, if `max_body_bytes` allows so many."""

MAX_RATIO = 100
"""The most bytes that one compressed byte may stand for. Numbers as JSON have less than 20."""

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_MAX_MEMBERS = 16
"""A gzip file may consist of several members. Each costs a copy of the bytes after it."""
_THREADS = 2

_T = TypeVar("_T")


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, "parse-bodies")


async def compute(size: int, function: Callable[..., _T], *arguments: object) -> _T:
    """Calls a function, on a thread if there are more than `THREAD_BYTES` to work on."""
    if size <= THREAD_BYTES:
        return function(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_threads(), function, *arguments)


async def stream_body(request: HttpRequest, max_bytes: int) -> AsyncIterator[bytes]:
    """Yields the pieces of a body as they come, without decompressing them.

    Raises `HttpError` 413 above the limit, and `ClientDisconnectError` if the client hangs up.
    """
    length = request.headers.get("content-length", "")
    size = int(length[:20]) if length.isdecimal() else 0
    is_last = False
    if size > max_bytes:
        raise _too_large(max_bytes)
    size = 0
    while not is_last:
        message = await request.receive()
        if request.exchange is not None and request.exchange.refusal is not None:
            raise request.exchange.refusal
        if message["type"] == "http.disconnect":
            raise ClientDisconnectError
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield piece
        is_last = not message.get("more_body", False)


def _too_large(max_bytes: int) -> HttpError:
    message = f"The body is larger than {max_bytes} bytes. Send fewer rows in one request."
    return HttpError(413, message, (("connection", "close"),))


async def read_body(request: HttpRequest, max_bytes: int) -> bytes:
    """Returns the whole body, decompressed. Raises the errors of `stream_body`."""
    body: bytes | bytearray = b""
    async for piece in stream_body(request, max_bytes):
        if not body:
            body = piece
        else:
            # A list of small pieces would take many times their size.
            body = bytearray(body) if isinstance(body, bytes) else body
            body += piece
    received = cast(bytes, body)  # A copy would hold the event loop and double the memory.
    encoding = request.headers.get("content-encoding")
    if encoding is None:
        return received
    limit = min(max_bytes, MAX_INFLATED_BYTES)
    return await compute(len(body) * MAX_RATIO, inflate_body, received, encoding, limit)


def inflate_body(body: bytes, encoding: str, limit: int) -> bytes:
    """Returns the decompressed body of a request.

    It never decompresses more than `limit` bytes and one, nor more than `MAX_RATIO` times the body
    beyond the first `THREAD_BYTES`.

    `encoding` is the header `Content-Encoding`. Raises `HttpError` 415 for an unknown one, 400 for
    damaged bytes, and 413 above the limit.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _WINDOW_BITS:
        raise HttpError(
            415,
            f"Content-Encoding {encoding!r} is not supported. Send gzip, deflate, or neither.",
            (("Accept-Encoding", "gzip, deflate"),),
        )
    limit = min(limit, max(THREAD_BYTES, MAX_RATIO * len(body)))
    bits = _WINDOW_BITS[name]
    if name == "deflate" and not _has_zlib_header(body):
        bits = -15  # Some clients send the stream without its header.
    try:
        return _inflate(body, bits, limit)
    except zlib.error as error:
        raise HttpError(400, f"The body is not {name}: {error}.") from error


def _has_zlib_header(body: bytes) -> bool:
    return len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0  # noqa: PLR2004 - zlib's format.


def _inflate(body: bytes, bits: int, limit: int) -> bytes:
    parts: list[bytes] = []
    room = limit
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(bits)
        # One byte above the limit shows that the body is too large.
        part = member.decompress(body, room + 1)
        if len(part) > room:
            raise HttpError(
                413,
                f"The body inflates to more than {limit} bytes. Send fewer rows in one request.",
            )
        if not member.eof:
            raise zlib.error("it is cut short")
        parts.append(part)
        room -= len(part)
        body = member.unused_data
        if not body:
            return b"".join(parts)
    raise HttpError(413, f"The body has more than {_MAX_MEMBERS} members.")
