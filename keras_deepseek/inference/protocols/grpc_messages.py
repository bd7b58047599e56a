"""The gRPC messages of all protocols, made at runtime from `proto/descriptors.binpb`.

`.ci/compile_protos.py` compiles that file from `proto/*.proto`. Code that protoc generates would
register the messages in protobuf's default pool, where they clash with packages of clients, such as
tensorflow-serving-api; here they have their own pool.
"""

import asyncio
import threading
from functools import cache
from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError, MissingExtraError

Message = Any
"""A message of `protobuf`: its fields are attributes."""

_DESCRIPTORS = Path(__file__).parent / "proto" / "descriptors.binpb"


_making_pool = threading.Lock()

MAX_FIELDS = 2**18
"""The most fields of a message, with those of the messages in it."""

_LIST_BYTES = 2**5
"""Bytes of a list of integers that count as one field. Each byte may take 15 of memory."""

_VARINT, _EIGHT_BYTES, _SIZED, _FOUR_BYTES = 0, 1, 2, 5
"""The wire types: how the value after a tag is encoded. `_SIZED` values begin with their size."""

_CONTINUED = 0x80


def message_pool() -> Any:
    """Returns the protobuf descriptor pool that holds the messages and services."""
    with _making_pool:  # Two threads would make two, whose messages do not fit together.
        return _make_pool()


@cache
def _make_pool() -> Any:
    try:
        from google.protobuf.any_pb2 import DESCRIPTOR as ANY
        from google.protobuf.descriptor_pb2 import FileDescriptorSet
        from google.protobuf.descriptor_pool import DescriptorPool
        from google.protobuf.wrappers_pb2 import DESCRIPTOR as WRAPPERS
    except ImportError as error:
        raise MissingExtraError("protobuf", "grpc", "to read and write messages") from error
    pool = DescriptorPool()
    for imported in (ANY, WRAPPERS):
        pool.AddSerializedFile(imported.serialized_pb)
    for file in FileDescriptorSet.FromString(_DESCRIPTORS.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def new_message(name: str, /, **fields: Any) -> Message:
    """Creates a protobuf message with fields, by a name such as `"tensorflow.TensorProto"`."""
    return _message_class(name)(**fields)


def write_message(name: str, /, **fields: Any) -> bytes:
    """Returns the bytes of a protobuf message with fields, by its name."""
    return bytes(new_message(name, **fields).SerializeToString())


def parse_message(name: str, data: bytes) -> Message:
    """Parses the bytes of a protobuf message from a client."""
    kind = _message_class(name)
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(bytes(data))
    except DecodeError as error:
        raise InvalidInputError(
            f"Received {len(data)} bytes that are not a valid {name} message: {error}."
        ) from error


def parse_message_text(name: str, text: str) -> Message:
    """Parses a protobuf message in text format, which a user wrote in a file."""
    message = new_message(name)
    from google.protobuf.text_format import Parse, ParseError

    try:
        return Parse(text, message, descriptor_pool=message_pool())
    except ParseError as error:
        raise InvalidInputError(f"The text is not a valid {name} message: {error}") from error


@cache
def _message_class(name: str) -> Any:
    pool = message_pool()
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(pool.FindMessageTypeByName(name))


async def check_field_count(name: str, data: bytes) -> None:
    """Raises an error if a message has more than `MAX_FIELDS` fields. Malformed ones may pass.

    Call it before a message is parsed: a parsed field of two bytes may take 150 bytes of memory, so
    that 64 MiB of them took 4.6 GB. The fields of a large message are counted on a thread, so that
    other requests don't wait.
    """
    if len(data) > 2 * MAX_FIELDS:  # A field has two bytes at least.
        await asyncio.to_thread(_count, data, message_pool().FindMessageTypeByName(name))


def _count(data: bytes, descriptor: Any) -> None:
    """Raises an error if a message and the messages inside of it have over `MAX_FIELDS` fields.

    The function steps from tag to tag, and parses no values. The current message ends at `end`, and
    `inner` has the types of its fields (`_inner_of`). `outer` is the stack of both for the messages
    around it.
    """
    position, end, inner, budget = 0, len(data), _inner_of(descriptor), MAX_FIELDS
    outer: list[tuple[int, dict[int, Any]]] = []
    while position < end or outer:
        if position >= end:  # Goes on after the inner message, in the one around it.
            position, (end, inner) = end, outer.pop()
            continue
        tag = data[position]
        position += 1
        if tag >= _CONTINUED:
            tag, position = _read_varint(data, position - 1)
        kind, number = tag & 7, tag >> 3  # A tag has three bits of wire type, then the number.
        budget -= 1
        if kind in (_VARINT, _SIZED):
            size, position = _read_varint(data, position)
            if kind == _SIZED:
                field = inner.get(number)
                if field is None:  # Text or bytes.
                    position += size
                elif field is int:  # A packed list of integers.
                    position += size
                    budget -= size // _LIST_BYTES
                elif size:  # A message.
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
    """Returns, by field number, the descriptors of inner messages, and `int` for integers."""
    return {
        field.number: field.message_type or int
        for field in descriptor.fields
        if field.message_type is not None or field.cpp_type <= field.CPPTYPE_UINT64
    }
