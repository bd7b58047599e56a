"""JSON of clients: its text, rows of values to a model's inputs, outputs to rows, and strings.

`orjson` is used if it is installed. For 150,000 floats it reads in a fifth of the time of Python's
`json`, and writes in a thirtieth. It has no `NaN` and `Infinity`, which TF Serving allows; JSON
with these, and all JSON if `orjson` is not installed, goes through Python's `json`.

A row is the value of the only input, or an object with a value for each input by name. Strings may
be objects `{"b64": "..."}`, for bytes that are not UTF-8, as in TF Serving's JSON.
"""

import binascii
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.tensor_bytes import shape_array, string_array

_SLOW_BYTES = 2**16
_BEYOND_ORJSON = (b"NaN", b"Infinity", b"\\ud", b"\\uD")
"""Parts of texts that Python's `json` reads and `orjson` does not: numbers and lone surrogates."""

_KEY = "b64"
_MAX_RANK = 32


def load_json(text: bytes | memoryview) -> Any:
    """Parses JSON. `NaN`, `Infinity` and `-Infinity` are allowed as numbers."""
    if not len(text):
        raise InvalidInputError("The body is not JSON: it is empty.")
    fast = _orjson()
    if fast is not None:
        try:
            return fast.loads(text)
        except ValueError as error:
            # Below, a large text would hold up all threads for long. It is worth that only for NaN.
            if len(text) > _SLOW_BYTES and not _is_beyond_orjson(text):
                raise InvalidInputError(f"The body is not JSON: {error}.") from error
    try:
        return json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"The body is not JSON: {error}.") from error


def load_object(text: bytes | memoryview, expected: str) -> dict[str, Any]:
    """Returns the JSON object in a text. `expected` describes it in the error: "with 'rows'"."""
    content = load_json(text)
    if not isinstance(content, dict):
        raise InvalidInputError(
            f"Expected a JSON object {expected}; received {reprlib.repr(content)}."
        )
    return content


def to_json(content: Any, *, is_finite: bool = False) -> bytes:
    """Encodes values as JSON, with bare `NaN`, `Infinity` and `-Infinity` as in TF Serving.

    NumPy arrays of numbers and NumPy numbers are allowed. `orjson` writes a `float32` with the
    fewest digits that read back as the same `float32`. With `is_finite`, the caller knows that
    there are no such numbers, which saves looking for them.
    """
    fast = _orjson()
    if fast is None:
        return _slow_json(content)
    try:
        text: bytes = fast.dumps(content, default=_to_list, option=fast.OPT_SERIALIZE_NUMPY)
    except TypeError:  # For integers over 64 bits and for unpaired surrogates.
        return _slow_json(content)
    # orjson writes null for NaN and infinities.
    is_finite = is_finite or b"null" not in text or _is_plain(content)
    return text if is_finite else _slow_json(content)


def _is_beyond_orjson(text: bytes | memoryview) -> bool:
    """Returns True if a text has what `orjson` refuses. Other threads may run between slices."""
    for start in range(0, len(text), _SLOW_BYTES):
        # A part may begin in one slice and end in the next.
        piece = bytes(text[start : start + _SLOW_BYTES + len("Infinity")])
        if any(part in piece for part in _BEYOND_ORJSON):
            return True
    return False


@cache
def _orjson() -> Any:
    try:
        import orjson
    except ImportError:
        return None
    return orjson


def _slow_json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":"), default=_to_list).encode()


def _is_plain(content: Any) -> bool:
    """Returns true if every number is finite, so that `orjson` can write it."""
    if isinstance(content, dict):
        return all(map(_is_plain, content.values()))
    if isinstance(content, list | tuple):
        try:
            return math.isfinite(sum(content))  # Fast for a list of numbers.
        except (TypeError, OverflowError):
            return all(map(_is_plain, content))
    if isinstance(content, np.ndarray | np.generic):
        return content.dtype.kind in "iubOUS" or bool(np.isfinite(content).all())
    return not isinstance(content, float) or math.isfinite(content)


def _to_list(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} can't be written as JSON.")


def inputs_from_rows(
    rows: Any, signature: Signature, field: str, *, has_text: bool = True
) -> dict[str, Any]:
    """Returns the nested lists of each input, for `Signature.bind`, from a list of rows.

    Errors call the list by `field`, its name in the request. `has_text` is as in `decode_inputs`.

    Example:

    >>> signature = Signature((TensorSpec("x", (None, 2), "float32"),), ())
    >>> inputs_from_rows([{"x": [1, 2]}, {"x": [3, 4]}], signature, "rows")
    {'x': [[1, 2], [3, 4]]}
    """
    return decode_inputs(_split_rows(rows, signature, field), signature, has_text=has_text)


def rows_from_outputs(outputs: Mapping[str, Array]) -> Any:
    """Returns a value for each row: of the only output, or an object of all outputs by name.

    Example:

    >>> rows_from_outputs({"a": np.array([1, 2]), "b": np.array([3, 4])})
    [{'a': np.int64(1), 'b': np.int64(3)}, {'a': np.int64(2), 'b': np.int64(4)}]
    """
    columns = encode_columns(outputs)
    if len(columns) == 1:
        return next(iter(columns.values()))
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def decode_inputs(
    inputs: Mapping[str, Any], signature: Signature, *, has_text: bool = True
) -> dict[str, Any]:
    """Returns nested lists by input name, with arrays for inputs that are empty or strings.

    `has_text=False` promises that no value is a string, so that inputs of numbers needn't be
    searched for strings.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    return {name: _decode(value, specs.get(name), has_text) for name, value in inputs.items()}


def refuse_text(value: Any, spec: TensorSpec) -> None:
    """Raises `InvalidInputError` for strings in the nested lists of an input of numbers.

    NumPy would make an array in which each number takes as many bytes as the longest string.
    """
    level = [value]
    while (kinds := set(map(type, level))) == {list}:
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    if str in kinds:
        raise InvalidInputError(f"Input {spec.name!r}: received text; expected {spec}.")


def encode_columns(outputs: Mapping[str, Array]) -> dict[str, Any]:
    """Returns outputs that `to_json` can write: strings become text or base64 objects."""
    return {
        name: encode_strings(name, array) if array.dtype.kind in "OUS" else array
        for name, array in outputs.items()
    }


def _split_rows(rows: Any, signature: Signature, field: str) -> dict[str, Any]:
    if not isinstance(rows, list):
        raise InvalidInputError(
            f"'{field}' must be a list, with one value for each row; received {reprlib.repr(rows)}."
        )
    names = [spec.name for spec in signature.inputs]
    if not rows:
        return {name: [] for name in names}
    named = [isinstance(row, dict) and not is_base64_object(row) for row in rows]
    if all(named):
        other = next((row for row in rows if row.keys() != rows[0].keys()), None)
        if other is not None:
            raise InvalidInputError(
                f"All of '{field}' must have the same names: {names}; received "
                f"{reprlib.repr([*rows[0]])} and {reprlib.repr([*other])}."
            )
        return {name: [row[name] for row in rows] for name in rows[0]}
    if any(named):
        raise InvalidInputError(
            f"Either all or none of '{field}' must be objects with {names}. Number 0 and number "
            f"{named.index(not named[0])} differ."
        )
    if len(names) > 1:
        raise InvalidInputError(
            f"The model has several inputs: each of '{field}' must be an object with {names}; "
            f"received {reprlib.repr(rows[0])}."
        )
    return {names[0]: rows}


def _decode(value: Any, spec: TensorSpec | None, has_text: bool) -> Any:
    if spec is None:  # `Signature.bind` refuses an unknown name.
        return value
    if value == []:  # It does not show the shape of a row.
        return np.zeros((0, *(1 if size is None else size for size in spec.shape[1:])), spec.dtype)
    if spec.dtype == "object":
        return decode_strings(value, f"Input {spec.name!r}")
    if has_text:
        refuse_text(value, spec)
    return value


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
