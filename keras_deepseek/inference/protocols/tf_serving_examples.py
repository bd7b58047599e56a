"""TF Serving's `:classify` and `:regress`: examples in, classes with scores or one number out.

An example is features by name, each a list of values. Each input of the model takes the feature of
its name; a feature that no input has is passed over, as TensorFlow does. A model that has one input
of strings reads features itself, and takes whole examples as messages. `tf_serving_grpc` reads the
same examples from messages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.base64_objects import decode_string, is_base64_object
from keras_deepseek.inference.protocols.json_text import to_json
from keras_deepseek.inference.protocols.messages import new_message
from keras_deepseek.inference.protocols.tensor_bytes import count_of, string_array, strings_of
from keras_deepseek.inference.protocols.tf_serving import (
    Signatures,
    find_signature,
    load_object,
)

Example = Mapping[str, Sequence[Any]]
"""Features by name: all of the values of one are `bytes`, integers or floats."""

Classes = list[tuple[str, float]]
"""The labels and scores of one example; a label is empty where there is none."""

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

_LARGEST_FLOAT = float(np.finfo("float32").max)


@dataclass(frozen=True)
class ExamplesCall:
    """A request to `:classify` or `:regress`.

    Args:
        inputs: dict of arrays by input name, rows first.
        signature_name: string. The signature that is called.
    """

    inputs: dict[str, Array]
    signature_name: str


def parse_examples(body: bytes, signature: Signatures) -> ExamplesCall:
    """Returns what the body of a `:classify` or a `:regress` asks for.

    Args:
        body: bytes. JSON: `{"examples": [...]}`, and `"context"` with what all of them have.
        signature: `Signature` of the model, or a mapping of several by name.

    Raises:
        InvalidInputError: It is not JSON, or not of this form, or the model needs other features.

    Example:

    >>> signature = Signature((TensorSpec("age", (None,), "float32"),), ())
    >>> parse_examples(b'{"examples": [{"age": 3}, {"age": [4.5]}]}', signature).inputs
    {'age': array([3. , 4.5], dtype=float32)}
    """
    content = load_object(body)
    rows = content.get("examples")
    if not isinstance(rows, list) or not rows:
        raise InvalidInputError("Expected a JSON object with 'examples', a list of at least one.")
    name, called = find_signature(content.get("signature_name", ""), signature)
    context = _read_example(content.get("context", {}))
    examples = [{**context, **_read_example(row)} for row in rows]
    return ExamplesCall(bind_examples(examples, called), name)


def bind_examples(examples: Sequence[Example], signature: Signature) -> dict[str, Array]:
    """Returns the inputs that examples stand for.

    Args:
        examples: sequence of features by name, the context's among them.
        signature: `Signature` of the model.

    Raises:
        InvalidInputError: There is no example, or a feature is missing, or its values do not fit.
        MissingExtraError: The model takes whole examples, and `protobuf` is not installed.
    """
    if not examples:
        raise InvalidInputError("Received no examples. Expected at least one.")
    name = _whole_example_input(signature)
    if name is not None and not any(name in example for example in examples):
        return signature.bind({name: string_array([_serialize(each) for each in examples])})
    return signature.bind({spec.name: _stack(spec, examples) for spec in signature.inputs})


def classify(
    outputs: Mapping[str, Array], rows: int, labels: Sequence[str] | None = None
) -> list[Classes]:
    """Returns the classes of each example.

    Args:
        outputs: dict of arrays by output name. The one of floats has the scores; one of strings,
            if there is one, the labels. Both are of shape `(batch, classes)`.
        rows: integer. How many examples there were.
        labels: sequence of strings, one for each class, for a model that has none itself.
            Defaults to `None`.

    Raises:
        InvalidInputError: The model can't classify.

    Example:

    >>> classify({"y": np.array([[0.25, 0.75]])}, 1, labels=["cat", "dog"])
    [[('cat', 0.25), ('dog', 0.75)]]
    """
    scores = _one_of(outputs, "scores", "f")
    names = _one_of(outputs, "classes", "OUS")
    found = [array for array in (scores, names) if array is not None]
    count = found[0].shape[-1] if found and found[0].ndim else 0
    if not found or any(array.shape != (rows, count) for array in found):
        raise InvalidInputError(
            "The model can't classify: expected one output of floats, of shape (batch, classes), "
            f"and perhaps one of strings; it has {_describe(outputs)}. Use :predict."
        )
    if names is not None:
        text = [value.decode(errors="replace") for value in strings_of(names)]
    elif labels is not None and len(labels) != count:
        raise InvalidInputError(f"The model has {count} classes and {len(labels)} labels.")
    else:
        text = list(labels or [""] * count) * rows
    values = [0.0] * len(text) if scores is None else scores.ravel().tolist()
    pairs = list(zip(text, values, strict=True))
    return [pairs[row * count : (row + 1) * count] for row in range(rows)]


def regress(outputs: Mapping[str, Array], rows: int) -> list[float]:
    """Returns the number of each example.

    Args:
        outputs: dict of one array of floats, of shape `(batch,)` or `(batch, 1)`.
        rows: integer. How many examples there were.

    Raises:
        InvalidInputError: The model does not give one number for each example.

    Example:

    >>> regress({"y": np.array([[0.5], [2.0]])}, 2)
    [0.5, 2.0]
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
    """Returns what `classify` or `regress` does.

    Args:
        method: string. `CLASSIFY_METHOD` or `REGRESS_METHOD`.
        outputs: dict of arrays by output name.
        rows: integer. How many examples there were.

    Raises:
        InvalidInputError: The model can't do it.
    """
    return classify(outputs, rows) if method == CLASSIFY_METHOD else regress(outputs, rows)


def encode_results(results: Sequence[Classes] | Sequence[float]) -> bytes:
    """Returns the answer to `:classify` or `:regress` as JSON.

    Args:
        results: list. What `read_results` has returned.

    Example:

    >>> encode_results([[("cat", 0.25), ("dog", 0.75)]])
    b'{"results":[[["cat",0.25],["dog",0.75]]]}'
    """
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
            f"received {values!r:.100}."
        )
    return values


def _stack(spec: TensorSpec, examples: Sequence[Example]) -> Array:
    """Returns the values of an input's feature, one row an example."""
    missing = [number for number, example in enumerate(examples) if spec.name not in example]
    if missing:
        raise InvalidInputError(
            f"Example {missing[0]} has no feature {spec.name!r}, which the model takes as {spec}."
        )
    rows = [example[spec.name] for example in examples]
    shape = _row_shape(spec, len(rows[0]))
    if any(len(row) != count_of(shape) for row in rows):
        counts = sorted({len(row) for row in rows})
        raise InvalidInputError(
            f"Feature {spec.name!r}: received {counts} values; expected {spec}."
        )
    values = [value for row in rows for value in row]
    is_bytes = any(isinstance(value, bytes) for value in values)
    array = string_array(values) if is_bytes else np.asarray(values)
    return array.reshape(len(rows), *shape)


def _whole_example_input(signature: Signature) -> str | None:
    """Returns the one input of a model that takes one string a row."""
    if len(signature.inputs) != 1:
        return None
    (spec,) = signature.inputs
    return spec.name if spec.dtype == "object" and len(spec.shape) == 1 else None


def _serialize(example: Example) -> bytes:
    """Returns an example as TensorFlow's `parse_example` reads it."""
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
        raise InvalidInputError(f"Feature {name!r}: received {value}, which is no float32.")
    return value


def _check_integer(name: str, value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise InvalidInputError(f"Feature {name!r}: received {value!r:.30}, which is no int64.")
    return int(value)


def _row_shape(spec: TensorSpec, count: int) -> tuple[int, ...]:
    """Returns the shape of a row: the values say how long one axis of any length is."""
    axes = spec.shape[1:]
    if axes.count(None) > 1:
        raise InvalidInputError(
            f"Input {spec}: several axes of any length, which a list of values can't tell apart. "
            "Use :predict."
        )
    known = count_of([size for size in axes if size is not None])
    rest = count // known if known else 0
    return tuple(rest if size is None else size for size in axes)


def _one_of(outputs: Mapping[str, Array], name: str, kinds: str) -> Array | None:
    """Returns the output of a name, or else the only one of these kinds of dtype."""
    fitting = {key: array for key, array in outputs.items() if _kind(array) in kinds}
    if name in fitting or len(fitting) == 1:
        return fitting.get(name, next(iter(fitting.values())))
    return None


def _kind(array: Array) -> str:
    return "f" if array.dtype.name == "bfloat16" else array.dtype.kind


def _describe(outputs: Mapping[str, Array]) -> str:
    return ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in outputs.items())
