"""The gRPC messages of all protocols, made at runtime from `proto/descriptors.binpb`.

`.ci/compile_protos.py` compiles that file from `proto/*.proto`. Code that protoc generates would
register the messages in protobuf's default pool, where they clash with packages of clients, such as
tensorflow-serving-api; here they have their own pool.
"""

import threading
from functools import cache
from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError, MissingExtraError

Message = Any
"""A message of `protobuf`: its fields are attributes."""

_DESCRIPTORS = Path(__file__).parent / "proto" / "descriptors.binpb"


_making_pool = threading.Lock()


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
