"""TF Serving's REST words: pure functions, for whichever server answers HTTP.

Row form: `{"instances": [...]}` is answered with `{"predictions": [...]}`, one value a row. Column
form: `{"inputs": ...}` is answered with `{"outputs": ...}`, one array a tensor.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec

VERSION = "1"
"""The one version of a model that an engine serves."""

SIGNATURE_NAME = "serving_default"

_TF_DTYPES = {
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "float16": "DT_HALF",
    "bfloat16": "DT_BFLOAT16",
    "int8": "DT_INT8",
    "int16": "DT_INT16",
    "int32": "DT_INT32",
    "int64": "DT_INT64",
    "uint8": "DT_UINT8",
    "uint16": "DT_UINT16",
    "uint32": "DT_UINT32",
    "uint64": "DT_UINT64",
    "bool": "DT_BOOL",
}


@dataclass(frozen=True)
class PredictCall:
    """A request to `:predict`.

    Args:
        inputs: dict. Nested lists or arrays by input name; their shapes and dtypes are not checked
            yet.
        is_row_form: boolean. Whether the answer has one value a row.
    """

    inputs: dict[str, Any]
    is_row_form: bool


def parse_predict(body: bytes, signature: Signature) -> PredictCall:
    """Returns what the body of a `:predict` asks for.

    Args:
        body: bytes. JSON.
        signature: `Signature` of the model.

    Raises:
        InvalidInputError: It is not JSON, or not of one of the two forms.

    Example:

    >>> signature = Signature((TensorSpec("x", (None, 2), "float32"),), ())
    >>> parse_predict(b'{"instances": [[1, 2], [3, 4]]}', signature)
    PredictCall(inputs={'x': [[1, 2], [3, 4]]}, is_row_form=True)
    >>> parse_predict(b'{"inputs": {"x": [[1, 2]]}}', signature)
    PredictCall(inputs={'x': [[1, 2]]}, is_row_form=False)
    """
    content = _load_json(body)
    _check_signature_name(content)
    if "instances" in content:
        inputs = _from_rows(content["instances"], signature)
    else:
        inputs = _from_columns(content["inputs"], signature)
    specs = {spec.name: spec for spec in signature.inputs}
    return PredictCall(
        {name: _with_shape(value, specs.get(name)) for name, value in inputs.items()},
        is_row_form="instances" in content,
    )


def format_outputs(outputs: Mapping[str, Array], is_row_form: bool) -> dict[str, Any]:
    """Returns the answer to `:predict`, as values that `to_json` takes.

    Args:
        outputs: dict of arrays by output name, rows first.
        is_row_form: boolean. As in the call.

    Example:

    >>> format_outputs({"a": np.array([1, 2]), "b": np.array([3, 4])}, is_row_form=True)
    {'predictions': [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]}
    """
    columns = {name: array.tolist() for name, array in outputs.items()}
    only = next(iter(columns.values())) if len(columns) == 1 else None
    if not is_row_form:
        return {"outputs": columns if only is None else only}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"predictions": rows if only is None else only}


def format_status(is_ready: bool) -> dict[str, Any]:
    """Returns the answer to `GET /v1/models/NAME`.

    Args:
        is_ready: boolean. Whether requests are answered.
    """
    return {
        "model_version_status": [
            {
                "version": VERSION,
                "state": "AVAILABLE" if is_ready else "LOADING",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }


def format_metadata(name: str, signature: Signature) -> dict[str, Any]:
    """Returns the answer to `GET /v1/models/NAME/metadata`.

    Args:
        name: string. The model's name.
        signature: `Signature` of the model.
    """
    definition = {
        "inputs": {spec.name: _tensor_info(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in signature.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": VERSION},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE_NAME: definition}}},
    }


def not_found_message(name: str, version: str | None) -> str:
    """Returns what TF Serving says about a model that it does not have.

    Example:

    >>> not_found_message("digits", None)
    'Servable not found for request: Latest(digits)'
    >>> not_found_message("digits", "3")
    'Servable not found for request: Specific(digits, 3)'
    """
    wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return f"Servable not found for request: {wanted}"


def to_json(content: Any) -> bytes:
    """Returns JSON. Like TF Serving's it has bare `NaN`, `Infinity` and `-Infinity`."""
    return json.dumps(content, separators=(",", ":")).encode()


def _load_json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"The body is not JSON: {error}.") from error
    if not isinstance(content, dict) or ("instances" in content) == ("inputs" in content):
        raise InvalidInputError("Expected a JSON object with either 'instances' or 'inputs'.")
    return content


def _check_signature_name(content: Mapping[str, Any]) -> None:
    name = content.get("signature_name", SIGNATURE_NAME)
    if name not in (SIGNATURE_NAME, ""):
        raise InvalidInputError(
            f"Serving signature name: {json.dumps(name)} not found in signature def. "
            f"Expected {SIGNATURE_NAME!r}, or none."
        )


def _from_rows(rows: Any, signature: Signature) -> dict[str, Any]:
    if not isinstance(rows, list):
        raise InvalidInputError("'instances' must be a list, with one value for each row.")
    names = [spec.name for spec in signature.inputs]
    if not rows:
        return {name: [] for name in names}
    if all(isinstance(row, dict) for row in rows):
        if any(row.keys() != rows[0].keys() for row in rows):
            raise InvalidInputError(f"Every one of 'instances' must have the same names: {names}.")
        return {name: [row[name] for row in rows] for name in rows[0]}
    if len(names) > 1:
        raise InvalidInputError(
            f"The model has several inputs: each of 'instances' must be an object with {names}."
        )
    return {names[0]: rows}


def _from_columns(columns: Any, signature: Signature) -> dict[str, Any]:
    if isinstance(columns, dict):
        return dict(columns)
    names = [spec.name for spec in signature.inputs]
    if len(names) > 1:
        raise InvalidInputError(
            f"The model has several inputs: 'inputs' must be an object with {names}."
        )
    return {names[0]: columns}


def _with_shape(value: Any, spec: TensorSpec | None) -> Any:
    """Returns `value`, or an array of no rows for `[]`, from which alone no shape can be read."""
    if value != [] or spec is None:
        return value
    return np.zeros((0, *(1 if size is None else size for size in spec.shape[1:])), spec.dtype)


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    sizes = [-1 if size is None else size for size in spec.shape]
    return {
        "dtype": _TF_DTYPES.get(spec.dtype, "DT_INVALID"),
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in sizes],
            "unknown_rank": False,
        },
        "name": f"{spec.name}:0",
    }
