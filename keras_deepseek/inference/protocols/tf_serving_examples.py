"""TF Serving's `:classify` and `:regress`: from examples to classes with scores, or to numbers.

An example has features by name, each a list of values. Each input of the model takes the feature of
its name. Other features are ignored, as in TensorFlow. A model with one input of strings takes each
example as a serialized `tf.train.Example`.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.grpc_messages import new_message
from keras_deepseek.inference.protocols.json_text import (
    decode_string,
    is_base64_object,
    load_object,
    to_json,
)
from keras_deepseek.inference.protocols.tensor_bytes import string_array, strings_of
from keras_deepseek.inference.protocols.tf_serving import check_signature_name

Example = Mapping[str, Sequence[Any]]
"""Features by name. All values of a feature have one type: `bytes`, integers or floats."""

Classes = list[tuple[str, float]]
"""The labels and scores of one example. A label is empty if the model has none."""

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

MAX_EXAMPLES = 2**16
"""Examples of a request. An empty one takes two bytes there, and a hundred times as many here."""

MAX_VALUES = 2**23
"""Numbers and bytes of all examples of a request, with the context in each of them."""

_LARGEST_FLOAT = float(np.finfo("float32").max)


def parse_examples(body: bytes, signature: Signature) -> dict[str, Array]:
    """Returns the inputs in the body of a `:classify` or a `:regress` request.

    `"context"` holds features that all examples share.

    Example:

    >>> signature = Signature((TensorSpec("age", (None,), "float32"),), ())
    >>> parse_examples(b'{"examples": [{"age": 3}, {"age": [4.5]}]}', signature)
    {'age': array([3. , 4.5], dtype=float32)}
    """
    content = load_object(body, "with a list of 'examples'")
    rows = content.get("examples")
    if not isinstance(rows, list) or not rows:
        raise InvalidInputError(
            "Expected a JSON object with 'examples', a list of at least one; received "
            f"{reprlib.repr(content)}."
        )
    check_signature_name(content.get("signature_name", ""))
    context = _read_example(content.get("context", {}))
    examples = [{**context, **_read_example(row)} for row in rows]
    return bind_examples(examples, signature)


def bind_examples(examples: Sequence[Example], signature: Signature) -> dict[str, Array]:
    """Converts examples, each with the features of the context, to the inputs of a model."""
    if not examples:
        raise InvalidInputError("Received no examples. Expected at least one.")
    _check_size(examples)
    name = _whole_example_input(signature)
    if name is not None and not any(name in example for example in examples):
        return signature.bind({name: string_array([_serialize(example) for example in examples])})
    return signature.bind({spec.name: _stack(spec, examples) for spec in signature.inputs})


def _check_size(examples: Sequence[Example]) -> None:
    """Raises an error if examples hold too much: all of them may share a large context."""
    sizes: dict[int, int] = {}  # By the identity of a list: the context's is in each example.
    size = 0
    for example in examples:
        for values in example.values():
            if id(values) not in sizes:
                are_bytes = len(values) > 0 and isinstance(values[0], bytes)
                sizes[id(values)] = sum(map(len, values)) if are_bytes else len(values)
            size += sizes[id(values)]
    if size > MAX_VALUES:
        raise InvalidInputError(
            f"Received {len(examples)} examples with {size} values, counting the context for each "
            f"and a string by its bytes. Expected at most {MAX_VALUES}; send fewer examples."
        )


def classify(outputs: Mapping[str, Array], rows: int) -> list[Classes]:
    """Returns the classes of each example.

    `outputs` have the shape `(batch, classes)`: one of floats with the scores, and optionally one
    of strings with the labels.
    """
    scores = _one_of(outputs, "scores", "f")
    names = _one_of(outputs, "classes", "OUS")
    arrays = [array for array in (scores, names) if array is not None]
    count = arrays[0].shape[-1] if arrays and arrays[0].ndim else 0
    if not arrays or any(array.shape != (rows, count) for array in arrays):
        raise InvalidInputError(
            "The model can't classify: expected one output of floats, of shape (batch, classes), "
            f"and optionally one of strings; it has {_describe(outputs)}. Use :predict."
        )
    labels = [""] * (rows * count)
    if names is not None:
        labels = [value.decode(errors="replace") for value in strings_of(names)]
    values = [0.0] * len(labels) if scores is None else scores.ravel().tolist()
    pairs = list(zip(labels, values, strict=True))
    return [pairs[row * count : (row + 1) * count] for row in range(rows)]


def regress(outputs: Mapping[str, Array], rows: int) -> list[float]:
    """Returns the predicted number of each example.

    `outputs` has one array of floats, of shape `(batch,)` or `(batch, 1)`.
    """
    array = _one_of(outputs, "outputs", "f")
    if array is None or array.shape not in ((rows,), (rows, 1)):
        raise InvalidInputError(
            "The model can't regress: expected one output of floats, of shape (batch,) or "
            f"(batch, 1); it has {_describe(outputs)}. Use :predict."
        )
    values: list[float] = array.ravel().tolist()
    return values


def read_results(
    method: str, outputs: Mapping[str, Array], rows: int
) -> list[Classes] | list[float]:
    """Returns the result of `classify` or `regress`, as `method` says."""
    return classify(outputs, rows) if method == CLASSIFY_METHOD else regress(outputs, rows)


def encode_results(results: Sequence[Classes] | Sequence[float]) -> bytes:
    """Returns the response to `:classify` or `:regress` as JSON."""
    return to_json({"results": results})


def _read_example(value: Any) -> dict[str, list[Any]]:
    if not isinstance(value, dict):
        raise InvalidInputError(
            "Each of 'examples', and 'context', must be an object of features by name; received "
            f"{type(value).__name__}."
        )
    return {name: _read_feature(name, feature) for name, feature in value.items()}


def _read_feature(name: str, feature: Any) -> list[Any]:
    where = f"Feature {name!r}"
    values = feature if isinstance(feature, list) else [feature]
    if any(isinstance(value, str) or is_base64_object(value) for value in values):
        return [decode_string(value, where) for value in values]
    kinds = {int if isinstance(value, bool) else type(value) for value in values}
    if kinds - {int, float} or len(kinds) > 1:
        raise InvalidInputError(
            f"{where}: expected strings, or integers, or numbers with a point, of one kind; "
            f"received {reprlib.repr(values)}."
        )
    return values


def _stack(spec: TensorSpec, examples: Sequence[Example]) -> Array:
    missing = [number for number, example in enumerate(examples) if spec.name not in example]
    if missing:
        raise InvalidInputError(
            f"Example {missing[0]} has no feature {spec.name!r}. The model needs it for {spec}."
        )
    rows = [example[spec.name] for example in examples]
    shape = _row_shape(spec, len(rows[0]))
    if any(len(row) != math.prod(shape) for row in rows):
        counts = sorted({len(row) for row in rows})
        raise InvalidInputError(
            f"Feature {spec.name!r}: received {counts} values; expected {spec}."
        )
    values = [value for row in rows for value in row]
    is_bytes = any(isinstance(value, bytes) for value in values)
    array = string_array(values) if is_bytes else np.asarray(values)
    return array.reshape(len(rows), *shape)


def _whole_example_input(signature: Signature) -> str | None:
    """Returns the name of the model's only input if it takes one string a row, else `None`."""
    if len(signature.inputs) != 1:
        return None
    (spec,) = signature.inputs
    return spec.name if spec.dtype == "object" and len(spec.shape) == 1 else None


def _serialize(example: Example) -> bytes:
    message = new_message("tensorflow.Example")
    for name, values in example.items():
        feature = message.features.feature[name]
        if any(isinstance(value, bytes) for value in values):
            feature.bytes_list.value.extend(values)
        elif any(isinstance(value, float) for value in values):
            feature.float_list.value.extend(_check_float(name, value) for value in values)
        else:
            feature.int64_list.value.extend(_check_integer(name, value) for value in values)
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _check_float(name: str, value: float) -> float:
    if math.isfinite(value) and abs(value) > _LARGEST_FLOAT:
        raise InvalidInputError(f"Feature {name!r}: received {value}, which float32 can't hold.")
    return value


def _check_integer(name: str, value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise InvalidInputError(
            f"Feature {name!r}: received {value!r:.30}, which int64 can't hold."
        )
    return int(value)


def _row_shape(spec: TensorSpec, count: int) -> tuple[int, ...]:
    """Returns the shape of an input's row that has `count` values.

    One axis may be of any length.
    """
    axes = spec.shape[1:]
    if axes.count(None) > 1:
        raise InvalidInputError(
            f"Input {spec} has several axes of any length. A list of values can't show them. "
            "Use :predict."
        )
    static_size = math.prod([size for size in axes if size is not None])
    dynamic_size = count // static_size if static_size else 0
    return tuple(dynamic_size if size is None else size for size in axes)


def _one_of(outputs: Mapping[str, Array], name: str, kinds: str) -> Array | None:
    """Returns the output with a name, or the only output whose dtype kind is one of `kinds`."""
    fitting = {key: array for key, array in outputs.items() if _kind(array) in kinds}
    if name in fitting or len(fitting) == 1:
        return fitting.get(name, next(iter(fitting.values())))
    return None


def _kind(array: Array) -> str:
    return "f" if array.dtype.name == "bfloat16" else array.dtype.kind


def _describe(outputs: Mapping[str, Array]) -> str:
    return ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in outputs.items())
