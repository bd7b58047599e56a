"""The JSON schemas of a model's inputs and outputs, in the forms of each protocol."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.inference.protocols.tensor_bytes import dtype_of

Schema = dict[str, Any]

_LARGEST = {
    "float16": (2 - 2**-11) * 2.0**15,
    "bfloat16": (2 - 2**-8) * 2.0**127,
    "float32": (2 - 2**-24) * 2.0**127,
}
"""Values from here on are rounded to infinity, and refused."""
_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_MAX_EXAMPLE_VALUES = 1000
"""Larger examples are left out: they would hide the rest of the document."""
_COUNT: Schema = {"type": "integer", "minimum": 0}


def kind_of(dtype: str) -> str:
    """Returns the JSON type of the values of a NumPy dtype or `"bfloat16"`."""
    if dtype == "bool":
        return "boolean"
    if dtype.startswith(("int", "uint")):
        return "integer"
    return "number" if "float" in dtype else "string"


def value_schema(dtype: str) -> Schema:
    """Returns the JSON schema of one input value. Booleans are accepted as numbers, as in NumPy."""
    kind = kind_of(dtype)
    if kind == "string":
        return {"type": kind}
    if kind == "boolean":
        return {"anyOf": [{"type": kind}, {"enum": [0, 1]}]}
    schema: Schema = {"type": [kind, "boolean"]}
    if kind == "integer":
        limits = np.iinfo(dtype)
        schema |= {"minimum": int(limits.min), "maximum": int(limits.max)}
    elif dtype in _LARGEST:
        limit = _LARGEST[dtype]
        schema |= {"exclusiveMinimum": -limit, "exclusiveMaximum": limit}
    return schema


def array_schema(value: Schema, shape: tuple[int | None, ...]) -> Schema:
    """Returns the JSON schema of nested lists; an axis of size `None` has any length."""
    schema = value
    for size in reversed(shape):
        schema = {"type": "array", "items": schema}
        if size is not None:
            schema |= {"minItems": size, "maxItems": size}
    return schema


def tensor_schema(spec: TensorSpec, first_axis: int = 1) -> Schema:
    """Returns the schema of an input: of one row, or of all rows if `first_axis` is 0."""
    value = value_schema(spec.dtype)
    if kind_of(spec.dtype) == "string":
        text = {"type": "string", "contentEncoding": "base64", "pattern": _BASE64}
        encoded = _object({"b64": text}, ["b64"])
        value = {"anyOf": [value, encoded | {"additionalProperties": False}]}
    return array_schema(value, spec.shape[first_axis:])


def object_schema(specs: Sequence[TensorSpec], first_axis: int = 1) -> Schema:
    """Returns the schema of an object with each input by name, as in `tensor_schema`."""
    fields = {spec.name: tensor_schema(spec, first_axis) for spec in specs}
    return _object(fields, list(fields))


def rows_schema(signature: Signature) -> Schema:
    """Returns the schema of the rows that `protocols.json_text.inputs_from_rows` reads."""
    row = object_schema(signature.inputs) | {"additionalProperties": False}
    rows: Schema = {"type": "array", "items": row}
    if len(signature.inputs) > 1:
        return rows
    values = {"type": "array", "items": tensor_schema(signature.inputs[0])}
    return {"anyOf": [values, rows]}


def answered_rows_schema(signature: Signature) -> Schema:
    """Returns the schema of the rows that `protocols.json_text.rows_from_outputs` makes."""
    outputs = signature.outputs
    row = _answer_object(outputs, 1) if len(outputs) > 1 else _answer(outputs[0], 1)
    return {"type": "array", "items": row}


def example_of(spec: TensorSpec, *, rows: int | None = None) -> Any:
    """Returns nested lists that fit an input, or `None` if they would be too long.

    With `rows=None` it is one row, without the batch axis.
    """
    sizes = [1 if size is None else size for size in spec.shape[1:]]
    sizes = sizes if rows is None else [rows, *sizes]
    if math.prod(sizes) > _MAX_EXAMPLE_VALUES:
        return None
    fill: Any = {"boolean": False, "string": "text", "integer": 0, "number": 0.0}
    value: Any = fill[kind_of(spec.dtype)]
    for size in reversed(sizes):
        value = [value] * size
    return value


def example_of_rows(signature: Signature) -> list[Any] | None:
    """Returns a list of one row, or `None` if it would be too long."""
    examples = {spec.name: example_of(spec) for spec in signature.inputs}
    if None in examples.values():
        return None
    return [examples if len(examples) > 1 else next(iter(examples.values()))]


def predict_request(signature: Signature) -> Schema:
    """Returns the JSON schema of a `:predict` request, in row or column form."""
    inputs = signature.inputs
    rows = rows_schema(signature)
    columns = object_schema(inputs, 0)  # Unknown names are ignored.
    if len(inputs) == 1:
        columns = {"anyOf": [tensor_schema(inputs[0], 0), columns]}
    name: Schema = {"signature_name": {"enum": ["", "serving_default"]}}
    schema: Schema = {
        "oneOf": [
            _object({"instances": rows, "inputs": False, **name}, ["instances"]),
            _object({"inputs": columns, "instances": False, **name}, ["inputs"]),
        ],
    }
    rows_example = example_of_rows(signature)
    if rows_example is not None:
        schema["examples"] = [{"instances": rows_example}]
    return schema


def predict_answer(signature: Signature) -> Schema:
    """Returns the JSON schema of a `:predict` response."""
    outputs = signature.outputs
    column = _answer_object(outputs, 0) if len(outputs) > 1 else _answer(outputs[0], 0)
    return {
        "oneOf": [
            _object({"predictions": answered_rows_schema(signature)}, ["predictions"]),
            _object({"outputs": column}, ["outputs"]),
        ]
    }


def examples_request(signature: Signature) -> Schema:
    """Returns the JSON schema of a `:classify` or `:regress` request."""
    features = {}
    for spec in signature.inputs:
        sizes = [size for size in spec.shape[1:] if size is not None]
        is_free = len(sizes) < len(spec.shape) - 1
        features[spec.name] = array_schema(
            value_schema(spec.dtype), (None if is_free else math.prod(sizes),)
        )
    value: Schema = {"type": ["string", "number", "boolean"]}
    other_features: Schema = {"anyOf": [value, {"type": "array", "items": value}]}
    example = _object(features, list(features)) | {"additionalProperties": other_features}
    rows = {"type": "array", "items": example, "minItems": 1}
    context = {"type": "object", "additionalProperties": other_features}
    return _object({"examples": rows, "context": context}, ["examples"])


def infer_request(signature: Signature) -> Schema:
    """Returns the JSON schema of the body of `/v2/models/NAME/infer`."""
    tensors = [_infer_tensor(spec) for spec in signature.inputs]
    schema = _object(
        {
            "id": {"type": "string"},
            "parameters": {
                "type": ["object", "null"],
                "properties": {
                    "priority": _COUNT
                    | {"description": "1 is the highest. 0, the default, is the lowest."},
                    "timeout": _COUNT | {"description": "Microseconds. 0: no limit."},
                },
            },
            "inputs": {
                "type": "array",
                "items": {"anyOf": tensors},
                "minItems": len(tensors),
                "maxItems": len(tensors),
            },
            "outputs": {
                "type": ["array", "null"],
                "items": _object(
                    {"name": {"enum": [spec.name for spec in signature.outputs]}}, ["name"]
                ),
            },
        },
        ["inputs"],
    )
    examples = [example_of(spec, rows=1) for spec in signature.inputs]
    if None not in examples:
        inputs = [
            {
                "name": spec.name,
                "shape": [1, *(1 if size is None else size for size in spec.shape[1:])],
                "datatype": dtype_of(spec.dtype).open_inference,
                "data": data,
            }
            for spec, data in zip(signature.inputs, examples, strict=True)
        ]
        schema["examples"] = [{"inputs": inputs}]
    return schema


def infer_answer(signature: Signature) -> Schema:
    """Returns the JSON schema of the answer of `/v2/models/NAME/infer`."""
    text: Schema = {"type": "string"}
    tensors = [_infer_tensor(spec) for spec in signature.outputs]
    outputs = {"type": "array", "items": {"anyOf": tensors}}
    fields = {"model_name": text, "model_version": text, "id": text, "outputs": outputs}
    return _object(fields, ["model_name", "model_version", "outputs"])


def _infer_tensor(spec: TensorSpec) -> Schema:
    size = {"type": "integer", "minimum": 0}
    shape = array_schema(size, (len(spec.shape),)) | {"description": str(spec)}
    data = {"type": "array", "description": "The values, flat or nested."}
    fields: Schema = {
        "name": {"const": spec.name},
        "shape": shape,
        "datatype": {"const": dtype_of(spec.dtype).open_inference},
        "parameters": {"type": ["object", "null"]},
        "data": data,
    }
    return _object(fields, ["name", "shape", "datatype", "data"])


def _answer(spec: TensorSpec, first_axis: int) -> Schema:
    """Returns the JSON schema of an output, whose sizes are not checked."""
    kind = kind_of(spec.dtype)
    value: Schema = {"type": ["string", "object"] if kind == "string" else kind}
    return array_schema(value, tuple(None for _ in spec.shape[first_axis:]))


def _answer_object(specs: tuple[TensorSpec, ...], first_axis: int) -> Schema:
    fields = {spec.name: _answer(spec, first_axis) for spec in specs}
    return _object(fields, list(fields))


def _object(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required}
