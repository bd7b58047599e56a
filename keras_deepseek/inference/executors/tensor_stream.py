"""Named arrays over a socket between two processes of ours: a JSON header, then their bytes."""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array

_LENGTH = struct.Struct("<Q")


def send_message(
    connection: socket.socket, content: Mapping[str, Any], arrays: Mapping[str, Array] | None = None
) -> None:
    """Sends values that JSON can hold, and arrays behind them.

    Args:
        connection: `socket.socket`.
        content: mapping. It must not have `"arrays"`.
        arrays: mapping of arrays by name. Defaults to none.
    """
    whole = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    described = [
        {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
        for name, array in whole.items()
    ]
    header = json.dumps({**content, "arrays": described}).encode()
    connection.sendall(_LENGTH.pack(len(header)) + header)
    for array in whole.values():
        if array.nbytes:
            connection.sendall(_bytes_of(array))


def receive_message(connection: socket.socket) -> tuple[dict[str, Any], dict[str, Array]]:
    """Returns what `send_message` sent.

    Args:
        connection: `socket.socket`. Its timeout holds for each part that is awaited.

    Raises:
        EOFError: The other process has closed its end.
        TimeoutError: Nothing came in time.
    """
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    content = json.loads(bytes(_receive(connection, length)))
    arrays = {}
    for described in content.pop("arrays"):
        array = np.empty(described["shape"], described["dtype"])
        if array.nbytes:
            _receive_into(connection, _bytes_of(array))
        arrays[described["name"]] = array
    return content, arrays


def _bytes_of(array: Array) -> memoryview:
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
