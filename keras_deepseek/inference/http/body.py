"""Decompresses the bodies of requests, up to a limit."""

import zlib

from keras_deepseek.inference.http.message import HttpError

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_MAX_MEMBERS = 16
"""A gzip file may consist of several members. Each costs a copy of the bytes after it."""


def inflate_body(body: bytes, encoding: str, limit: int) -> bytes:
    """Returns the decompressed body of a request.

    It never decompresses more than `limit` bytes and one.

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
