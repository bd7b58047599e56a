"""Protocol buffers from tables: the messages of a protocol, without generated code.

A table says for each message the names, numbers and types of its fields. The messages live in a
descriptor pool of their own, so the real packages of a protocol can be loaded beside them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from keras_deepseek.errors import InvalidInputError, MissingExtraError

Message = Any
"""A message of `protobuf`: its fields are attributes."""

_SCALARS = {
    "double": 1,
    "float": 2,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "bool": 8,
    "string": 9,
    "bytes": 12,
    "uint32": 13,
}
_MESSAGE, _ENUM = 11, 14
_OPTIONAL, _REPEATED = 1, 3


@dataclass(frozen=True)
class Protocol:
    """The messages and the services of one protocol.

    Args:
        packages: dict. For each package, in the order in which they need each other, its messages
            and enumerations by name; a name with a dot is one inside a message. A message is a
            string with one field a line: its name, number and type, as in `"name 1 string"`,
            `"dim 2 repeated Dim"`, `"inputs 2 map string TensorProto"`, and last the group of
            which one field at most is set, as in `"label 4 string oneof version_choice"`. An
            enumeration is a dict of numbers.
        services: dict. For each service its calls by name: the names of what is received and of
            what is answered.
    """

    packages: Mapping[str, Mapping[str, str | Mapping[str, int]]]
    services: Mapping[str, Mapping[str, tuple[str, str]]]

    def new(self, name: str, /, **fields: Any) -> Message:
        """Returns a message.

        Args:
            name: string. With its package, as in `"tensorflow.TensorProto"`.
            **fields: The values of its fields.

        Raises:
            MissingExtraError: `protobuf` is not installed.
        """
        return self._classes[name](**fields)

    def parse(self, name: str, data: bytes) -> Message:
        """Returns the message that bytes hold.

        Args:
            name: string. With its package.
            data: bytes. What a client sent.

        Raises:
            InvalidInputError: They hold no such message.
            MissingExtraError: `protobuf` is not installed.
        """
        kind = self._classes[name]
        from google.protobuf.message import DecodeError

        try:
            return kind.FromString(bytes(data))
        except DecodeError as error:
            raise InvalidInputError(
                f"The request's {len(data)} bytes are no {name} message: {error}."
            ) from error

    def parse_text(self, name: str, text: str) -> Message:
        """Returns the message that a text holds, in the form of protocol buffers for files.

        Args:
            name: string. With its package.
            text: string. As a user wrote it.

        Raises:
            InvalidInputError: It holds no such message.
            MissingExtraError: `protobuf` is not installed.
        """
        message = self.new(name)
        from google.protobuf.text_format import Parse, ParseError

        try:
            return Parse(text, message, descriptor_pool=self._pool)
        except ParseError as error:
            raise InvalidInputError(f"The text is no {name} message: {error}") from error

    @property
    def pool(self) -> Any:
        """The descriptor pool, for whoever describes the services."""
        return self._pool

    @cached_property
    def _classes(self) -> dict[str, Any]:
        pool = self._pool
        from google.protobuf.message_factory import GetMessageClass

        names = [name for name, kind in self._kinds() if kind == _MESSAGE]
        return {name: GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}

    @cached_property
    def _pool(self) -> Any:
        try:
            from google.protobuf.descriptor_pool import DescriptorPool
        except ImportError as error:
            raise MissingExtraError("protobuf", "grpc", "to read and write messages") from error
        pool = DescriptorPool()
        earlier: list[str] = []
        kinds = dict(self._kinds())
        for package in self.packages:
            file = self._describe_package(package, kinds)
            file.dependency.extend(earlier)
            pool.AddSerializedFile(file.SerializeToString())
            earlier.append(file.name)
        return pool

    def _kinds(self) -> Iterator[tuple[str, int]]:
        for package, entries in self.packages.items():
            for name, fields in entries.items():
                yield f"{package}.{name}", _MESSAGE if isinstance(fields, str) else _ENUM

    def _describe_package(self, package: str, kinds: Mapping[str, int]) -> Any:
        from google.protobuf.descriptor_pb2 import FileDescriptorProto

        file = FileDescriptorProto(
            name=f"keras_deepseek/{package}", package=package, syntax="proto3"
        )
        described: dict[str, Any] = {}
        for name, fields in self.packages[package].items():
            outer, _, own = name.rpartition(".")
            parent = described[outer] if outer else None
            if isinstance(fields, str):
                place = parent.nested_type if parent is not None else file.message_type
                described[name] = place.add(name=own)
                _add_fields(described[name], f"{package}.{name}", fields, kinds)
            else:
                enumeration = (parent or file).enum_type.add(name=own)
                for value, number in fields.items():
                    enumeration.value.add(name=value, number=number)
        for service, calls in self.services.items():
            if service.rpartition(".")[0] == package:
                _add_calls(file.service.add(name=service.rpartition(".")[2]), package, calls)
        return file


def _add_fields(message: Any, scope: str, fields: str, kinds: Mapping[str, int]) -> None:
    groups: list[str] = []
    for line in fields.strip().splitlines():
        name, number, *words = line.split()
        group = words.pop() if "oneof" in words else None
        words = [word for word in words if word != "oneof"]
        field = message.field.add(name=name, number=int(number), label=_OPTIONAL)
        if words[0] == "repeated":
            field.label = _REPEATED
        if words[0] == "map":
            _make_map(message, field, scope, words[1], words[2], kinds)
        else:
            _set_type(field, words[-1], scope, kinds)
        if group is not None:
            if group not in groups:
                groups.append(group)
                message.oneof_decl.add(name=group)
            field.oneof_index = groups.index(group)


def _make_map(
    message: Any, field: Any, scope: str, key: str, value: str, kinds: Mapping[str, int]
) -> None:
    """Makes a field one of entries, which is what a map is in a message."""
    name = "".join(word.capitalize() for word in field.name.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    _set_type(entry.field.add(name="key", number=1, label=_OPTIONAL), key, scope, kinds)
    _set_type(entry.field.add(name="value", number=2, label=_OPTIONAL), value, scope, kinds)
    field.label, field.type, field.type_name = _REPEATED, _MESSAGE, f".{scope}.{name}"


def _set_type(field: Any, name: str, scope: str, kinds: Mapping[str, int]) -> None:
    if name in _SCALARS:
        field.type = _SCALARS[name]
        return
    while f"{scope}.{name}".lstrip(".") not in kinds:
        scope = scope.rpartition(".")[0]
    full_name = f"{scope}.{name}".lstrip(".")
    field.type, field.type_name = kinds[full_name], f".{full_name}"


def _add_calls(service: Any, package: str, calls: Mapping[str, tuple[str, str]]) -> None:
    for name, (received, answered) in calls.items():
        is_stream = received.startswith("stream ")
        service.method.add(
            name=name,
            input_type=f".{package}.{received.removeprefix('stream ')}",
            output_type=f".{package}.{answered.removeprefix('stream ')}",
            client_streaming=is_stream,
            server_streaming=answered.startswith("stream "),
        )
