"""The bound on the number of fields of a protobuf message, which is checked before it is parsed.

A field of two bytes may take 150 bytes of memory when it is parsed: 64 MiB of them took 4.6 GB.
"""

import asyncio
from functools import cache
from typing import Any

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.messages import message_pool

MAX_FIELDS = 2**18
"""The most fields of a message, with those of the messages in it."""

_LIST_BYTES = 2**5
"""Bytes of a list of integers that count as one field. Each byte may take 15 of memory."""

_VARINT, _EIGHT_BYTES, _SIZED, _FOUR_BYTES = 0, 1, 2, 5
_CONTINUED = 0x80


async def check_field_count(name: str, data: bytes) -> None:
    """Raises an error if a message has more than `MAX_FIELDS` fields. Malformed ones may pass.

    A large message is counted on a thread, so that other requests don't wait.
    """
    if len(data) > 2 * MAX_FIELDS:  # A field has two bytes at least.
        await asyncio.to_thread(_count, data, message_pool().FindMessageTypeByName(name))


def _count(data: bytes, descriptor: Any) -> None:
    position, end, inner, budget = 0, len(data), _inner_of(descriptor), MAX_FIELDS
    outer: list[tuple[int, dict[int, Any]]] = []
    while position < end or outer:
        if position >= end:
            position, (end, inner) = end, outer.pop()
            continue
        tag = data[position]
        position += 1
        if tag >= _CONTINUED:
            tag, position = _read_varint(data, position - 1)
        kind = tag & 7
        budget -= 1
        if kind in (_VARINT, _SIZED):
            size, position = _read_varint(data, position)
            if kind == _SIZED:
                field = inner.get(tag >> 3)
                if field is None or field is int:
                    position += size
                    budget -= size // _LIST_BYTES if field else 0
                elif size:
                    outer.append((end, inner))
                    end, inner = min(end, position + size), _inner_of(field)
        elif kind == _EIGHT_BYTES:
            position += 8
        elif kind == _FOUR_BYTES:
            position += 4
        if budget < 0:
            raise InvalidInputError(
                f"The message has more than {MAX_FIELDS} fields, counting the items of lists. Send "
                "fewer rows, or numbers as raw bytes."
            )


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns a variable-length integer, and the position after it."""
    value = shift = 0
    for byte in data[position : position + 10]:
        position += 1
        value |= byte % _CONTINUED << shift
        if byte < _CONTINUED:
            break
        shift += 7
    return value, position


@cache
def _inner_of(descriptor: Any) -> dict[int, Any]:
    """Returns, by number, the messages in a message, and `int` for lists of integers."""
    return {
        field.number: field.message_type or int
        for field in descriptor.fields
        if field.message_type is not None or field.cpp_type <= field.CPPTYPE_UINT64
    }
