"""Rows of JSON to a model's inputs, and its outputs to rows.

A row is the value of the only input, or an object with a value for each input by name. Strings may
be objects `{"b64": "..."}`, for bytes that are not UTF-8.
"""

import reprlib
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.base64_objects import (
    decode_strings,
    encode_strings,
    is_base64_object,
)


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
