"""What the tests of the protocols share: arrays to draw, and the packages of the real clients."""

import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from keras_deepseek.inference.protocols import grpc_messages
from keras_deepseek.inference.protocols.grpc_messages import message_pool
from keras_deepseek.inference.protocols.tensor_bytes import DTYPES, dtype_of

DESCRIPTORS = Path(grpc_messages.__file__).parent / "proto" / "descriptors.binpb"

NUMBERS = [dtype.name for dtype in DTYPES if dtype.name != "object"]

shapes = np_st.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: Any, names: Any = NUMBERS) -> Any:
    """Draws an array of any dtype and shape that a protocol has; floats have NaN and infinities."""
    name = draw(st.sampled_from(names))
    shape = draw(shapes)
    if name == "object":
        strings = np.empty(shape, object)
        for index in np.ndindex(shape):
            strings[index] = draw(st.binary(max_size=5))
        return strings
    if name == "bfloat16":
        numbers = draw(np_st.arrays(np.uint16, shape))
        return numbers.view(dtype_of(name).numpy)
    return draw(np_st.arrays(name, shape))


def same(first: Any, second: Any) -> bool:
    """Whether two arrays agree in dtype, shape and every bit."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    if first.dtype == object:
        return bool(first.tolist() == second.tolist())
    return first.tobytes() == second.tobytes()


def import_client(name: str) -> Any:
    """Returns a module of a client's package, or skips the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What they warn of as they load is their own.
        return pytest.importorskip(
            name, reason=f"{name.partition('.')[0]} is not installed: `tox -e clients` has it"
        )


def skip_without(name: str) -> None:
    """Skips the test where a client's package is not installed; does not import it."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: `tox -e clients` has it")


def read_descriptors(path: Path = DESCRIPTORS) -> Any:
    """Returns the `FileDescriptorSet` of our messages, or of another file."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    return FileDescriptorSet.FromString(path.read_bytes())


def described_names(package: str = "") -> list[str]:
    """Returns the full names of our messages, of all packages that begin with `package`."""

    def walk(scope: str, kinds: Any) -> Iterator[str]:
        for kind in kinds:
            yield f"{scope}.{kind.name}"
            yield from walk(f"{scope}.{kind.name}", kind.nested_type)

    files = [file for file in read_descriptors().file if file.package.startswith(package)]
    message_names = [name for file in files for name in walk(file.package, file.message_type)]
    return [name for name in message_names if not name.endswith("Entry")]  # Those of maps.


def differing_fields(package: str, pool: Any) -> list[str]:
    """Returns the fields and numbers of our messages that a real package has otherwise.

    Args:
        package: string. The packages of our messages begin with it.
        pool: the descriptor pool in which a package of clients has put its own.
    """
    names = described_names(package)
    for file in read_descriptors().file:
        if file.package.startswith(package):
            names += [f"{file.package}.{enum.name}" for enum in file.enum_type]
    differing = []
    for name in names:
        ours, theirs = _describe(message_pool(), name), _describe(pool, name)
        differing += [
            f"{name}.{key}: ours {value}, theirs {theirs.get(key)}"
            for key, value in ours.items()
            if theirs.get(key) != value
        ]
    return differing


def calls_of(pool: Any, service: str) -> dict[str, tuple[str, str, bool, bool]]:
    """Returns the calls of a service in a descriptor pool: what they take, what they give."""
    return {
        call.name: (
            call.input_type.full_name,
            call.output_type.full_name,
            call.client_streaming,
            call.server_streaming,
        )
        for call in pool.FindServiceByName(service).methods
    }


def _describe(pool: Any, full_name: str) -> dict[str, Any]:
    try:
        fields = pool.FindMessageTypeByName(full_name).fields
    except (KeyError, TypeError):
        return {value.name: value.number for value in pool.FindEnumTypeByName(full_name).values}
    return {field.name: _describe_field(field) for field in fields}


def _describe_field(field: Any) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    entry = None
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = tuple(_describe_field(part) for part in field.message_type.fields)
    group = field.containing_oneof.name if field.containing_oneof else None
    name = kind.full_name if kind is not None and entry is None else None
    return field.number, field.type, field.is_repeated, field.is_packed, name, entry, group
