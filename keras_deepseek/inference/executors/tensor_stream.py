"""Messages between the server and its model processes: a JSON header, then the arrays' bytes."""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference.protocols.dtypes import dtype_of
from keras_deepseek.inference.protocols.tensor_bytes import from_bytes, to_bytes

_LENGTH = struct.Struct("<Q")


def send_message(
    connection: socket.socket, content: Mapping[str, Any], arrays: Mapping[str, Array] | None = None
) -> None:
    """Sends a message of JSON values and arrays. `content` must not have the key `"arrays"`."""
    whole = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    data = {name: _bytes_of(array) for name, array in whole.items()}
    described = [
        {
            "name": name,
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "bytes": len(data[name]),
        }
        for name, array in whole.items()
    ]
    header = json.dumps({**content, "arrays": described}).encode()
    connection.sendall(_LENGTH.pack(len(header)) + header)
    for buffer in data.values():
        if buffer:
            connection.sendall(buffer)


def receive_message(connection: socket.socket) -> tuple[dict[str, Any], dict[str, Array]]:
    """Receives the content and the arrays of a message from `send_message`.

    The socket's timeout holds for each part of the message. Raises `EOFError` if the other process
    closed its end.
    """
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    content = json.loads(bytes(_receive(connection, length)))
    arrays = {}
    for described in content.pop("arrays"):
        name, dtype, shape = described["name"], described["dtype"], described["shape"]
        if dtype == "object":
            strings = _receive(connection, described["bytes"])
            arrays[name] = from_bytes(bytes(strings), dtype_of(dtype), tuple(shape), name)
            continue
        array = np.empty(shape, dtype)
        if array.nbytes:
            _receive_into(connection, _bytes_of(array))
        arrays[name] = array
    return content, arrays


def _bytes_of(array: Array) -> memoryview:
    if array.dtype == object:  # Its memory holds addresses, not strings.
        return memoryview(to_bytes(array))
    view: memoryview = array.reshape(-1).view("uint8").data
    return view


def _receive(connection: socket.socket, length: int) -> bytearray:
    buffer = bytearray(length)
    _receive_into(connection, memoryview(buffer))
    return buffer


def _receive_into(connection: socket.socket, view: memoryview) -> None:
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError("The other process has closed its end.")
        view = view[count:]
