"""Fields of protocol buffer messages, written and read without the package `protobuf`."""

from collections.abc import Iterator
from typing import Any

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""


def key(number: int, wire_type: int) -> bytes:
    """Returns the encoded key of a protobuf field: its number and its wire type."""
    return varint(number << 3 | wire_type)


def field(number: int, content: bytes) -> bytes:
    """Encodes a protobuf field that holds a string, bytes or a message."""
    return key(number, BYTES) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Encodes an integer as a varint: seven bits a byte, lowest first; a high bit means more."""
    out = bytearray()
    while value >> 7:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields each field of a protobuf message: its number, and its bytes or integer."""
    start = 0
    while start < len(message):
        head, start = _read_varint(message, start)
        layout = head & 7
        if layout == VARINT:
            number, start = _read_varint(message, start)
            yield head >> 3, number
            continue
        length = {FIXED64: 8, FIXED32: 4}.get(layout)
        if length is None:
            length, start = _read_varint(message, start)
        yield head >> 3, message[start : start + length]
        start += length


def _read_varint(message: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if not byte & 0x80:
            return value, start
