"""Requests and responses of TF Serving's REST API.

In the row form `{"instances": [...]}` the response is `{"predictions": [...]}`, with one value for
each row. In the column form `{"inputs": ...}` it is `{"outputs": ...}`, with one array for each
tensor. `tf_serving_examples` has `:classify` and `:regress`.
"""

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError, did_you_mean
from keras_deepseek.inference.protocols.json_text import (
    decode_inputs,
    encode_columns,
    inputs_from_rows,
    is_base64_object,
    load_object,
    rows_from_outputs,
    to_json,
)
from keras_deepseek.inference.protocols.tensor_bytes import DTYPES

SIGNATURE_NAME = "serving_default"
"""The only signature of a model. A request may name it or none."""

PREDICT_METHOD = "tensorflow/serving/predict"

_TF_NAMES = {dtype.name: dtype.tf_name for dtype in DTYPES}


@dataclass(frozen=True)
class PredictCall:
    """A request to `:predict`.

    Args:
        inputs: Nested lists or arrays by input name; their shapes and dtypes are not checked yet.
        is_row_form: True if the response has one value for each row.
    """

    inputs: dict[str, Any]
    is_row_form: bool


@dataclass(frozen=True)
class VersionStatus:
    """The state of one version of a model.

    `state` is `"START"`, `"LOADING"`, `"AVAILABLE"`, `"UNLOADING"`, `"END"` or `"UNKNOWN"`.
    `error_code` is a gRPC status: the error of a version that could not be loaded.
    """

    version: int
    state: str
    error_code: str = "OK"
    error_message: str = ""


def parse_predict(body: bytes, signature: Signature) -> PredictCall:
    """Parses the body of a `:predict` request, in row form or in column form.

    Example:

    >>> signature = Signature((TensorSpec("x", (None, 2), "float32"),), ())
    >>> parse_predict(b'{"instances": [[1, 2], [3, 4]]}', signature).inputs
    {'x': [[1, 2], [3, 4]]}
    >>> parse_predict(b'{"inputs": {"x": [[1, 2]]}}', signature).is_row_form
    False
    """
    content = load_object(body, "with either 'instances' or 'inputs'")
    if ("instances" in content) == ("inputs" in content):
        raise InvalidInputError(
            "Expected a JSON object with either 'instances' or 'inputs'; received the keys "
            f"{reprlib.repr([*content])}."
        )
    check_signature_name(content.get("signature_name", ""))
    has_text = body.count(b'"') > 2  # noqa: PLR2004 - those of the one key.
    if "instances" in content:
        inputs = inputs_from_rows(content["instances"], signature, "instances", has_text=has_text)
    else:
        columns = _from_columns(content["inputs"], signature)
        inputs = decode_inputs(columns, signature, has_text=has_text)
    return PredictCall(inputs, is_row_form="instances" in content)


def check_signature_name(name: Any) -> None:
    """Raises an error for the name of a signature that models don't have."""
    if name not in ("", SIGNATURE_NAME):
        raise InvalidInputError(
            f"Serving signature name: {json.dumps(name, default=str)} not found in signature def. "
            f"Expected {SIGNATURE_NAME!r}."
        )


def encode_outputs(outputs: Mapping[str, Array], is_row_form: bool) -> bytes:
    """Returns the response to `:predict` as JSON, in the form of the request."""
    if is_row_form:
        return to_json({"predictions": rows_from_outputs(outputs)})
    columns = encode_columns(outputs)
    return to_json({"outputs": next(iter(columns.values())) if len(columns) == 1 else columns})


def format_versions(versions: Iterable[VersionStatus]) -> dict[str, Any]:
    """Returns the response to `GET /v1/models/NAME`, the newest version first."""
    return {
        "model_version_status": [
            {
                "version": str(version.version),
                "state": version.state,
                "status": {
                    "error_code": version.error_code,
                    "error_message": version.error_message,
                },
            }
            for version in sorted(versions, key=lambda version: -version.version)
        ]
    }


def format_metadata(name: str, signature: Signature, version: str) -> dict[str, Any]:
    """Returns the response to `GET /v1/models/NAME/metadata`."""
    definition = {
        "inputs": {spec.name: _tensor_info(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in signature.outputs},
        "method_name": PREDICT_METHOD,
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": version},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE_NAME: definition}}},
    }


def not_found_message(name: str, version: str | None) -> str:
    """Returns TF Serving's error message for a request to an unknown model."""
    servable = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return f"Servable not found for request: {servable}"


def no_version_message(name: str, version: int | None) -> str:
    """Returns TF Serving's error message for the status of an unknown model or version."""
    version_text = "any versions" if version is None else f"version {version}"
    return f"Could not find {version_text} of model {name}"


def unknown_label_message(label: str) -> str:
    """Returns TF Serving's error message for an unknown label. Its HTTP status is 400."""
    return f"Unrecognized servable version label: {label}"


def _from_columns(columns: Any, signature: Signature) -> dict[str, Any]:
    names = [spec.name for spec in signature.inputs]
    if isinstance(columns, dict) and not is_base64_object(columns):
        missing = [name for name in names if name not in columns]
        if missing:
            extra = [name for name in columns if name not in names]
            raise InvalidInputError(
                f"Missing named input: {missing} in 'inputs' object; expected {names}, received "
                f"{reprlib.repr([*columns])}.{did_you_mean(extra, missing)}"
            )
        return {name: columns[name] for name in names}
    if len(names) > 1:
        raise InvalidInputError(
            f"The model has several inputs: 'inputs' must be an object with {names}; received "
            f"{reprlib.repr(columns)}."
        )
    return {names[0]: columns}


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    sizes = [-1 if size is None else size for size in spec.shape]
    return {
        "dtype": _TF_NAMES.get(spec.dtype, "DT_INVALID"),
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in sizes],
            "unknown_rank": False,
        },
        "name": f"{spec.name}:0",
    }
