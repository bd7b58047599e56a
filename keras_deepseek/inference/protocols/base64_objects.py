"""Byte strings in TF Serving's JSON: text, or `{"b64": ...}` for bytes that are not text."""

import binascii
import reprlib
from collections.abc import Iterator
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.tensor_bytes import shape_array, string_array

_KEY = "b64"
_MAX_RANK = 32


def is_base64_object(value: Any) -> bool:
    """Returns true for a JSON object whose only key is `"b64"` and whose value is a string."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(_KEY), str)


def decode_string(value: Any, where: str) -> bytes:
    r"""Returns the bytes of a JSON string or of a base64 object.

    `where` starts the error message, as in `"Input 'x'"`.
    """
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if not is_base64_object(value):
        raise InvalidInputError(
            f'{where}: expected a string or {{"b64": ...}}; received {reprlib.repr(value)}.'
        )
    text = value[_KEY].rstrip("=")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError as error:
        raise InvalidInputError(f'{where}: "b64" is not valid base64: {error}.') from error


def decode_strings(value: Any, where: str) -> Array:
    """Returns an array of bytes from nested lists of strings and base64 objects."""
    shape: list[int] = []
    first = value
    while isinstance(first, list) and len(shape) <= _MAX_RANK:
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > _MAX_RANK:
        raise InvalidInputError(f"{where}: received more than {_MAX_RANK} nested lists.")
    leaves = [decode_string(leaf, where) for leaf in _leaves(value, shape, where)]
    return shape_array(string_array(leaves), tuple(shape), where)


def encode_strings(name: str, array: Array) -> Any:
    r"""Returns an array of strings as nested lists of JSON strings and base64 objects.

    As in TF Serving, all values of an output whose name ends in `"_bytes"` are base64 objects. In
    other outputs only values that are not UTF-8 are.

    Example:

    >>> import numpy as np
    >>> encode_strings("label", np.array([b"cat", b"\xff"], object))
    ['cat', {'b64': '/w=='}]
    """
    return _map(array.tolist(), always_base64=name.endswith("_bytes"))


def _leaves(value: Any, shape: list[int], where: str) -> Iterator[Any]:
    if not shape:
        if isinstance(value, list):
            raise InvalidInputError(f"{where}: received rows of unequal length.")
        yield value
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        raise InvalidInputError(f"{where}: received rows of unequal length.")
    for part in value:
        yield from _leaves(part, shape[1:], where)


def _map(value: Any, always_base64: bool) -> Any:
    if isinstance(value, list):
        return [_map(part, always_base64) for part in value]
    if isinstance(value, str) and not always_base64:
        return value
    data = value.encode() if isinstance(value, str) else bytes(value)
    if not always_base64:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return {_KEY: binascii.b2a_base64(data, newline=False).decode()}
