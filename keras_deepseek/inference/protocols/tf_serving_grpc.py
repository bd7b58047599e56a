"""Requests and responses of TF Serving's PredictionService over gRPC, from bytes and to bytes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.inference.protocols.grpc_messages import (
    Message,
    new_message,
    parse_message,
    write_message,
)
from keras_deepseek.inference.protocols.tensor_proto import write_tensor_proto
from keras_deepseek.inference.protocols.tf_serving import SIGNATURE_NAME
from keras_deepseek.inference.protocols.tf_serving_examples import (
    CLASSIFY_METHOD,
    MAX_EXAMPLES,
    REGRESS_METHOD,
    Classes,
    Example,
)

_SERVING = "tensorflow.serving."


@dataclass(frozen=True)
class ModelSpec:
    """The model that a request names; `version` is `None` for the newest.

    An empty `label` stands for none, an empty `signature_name` for `serving_default`.
    """

    name: str
    version: int | None = None
    label: str = ""
    signature_name: str = ""


@dataclass(frozen=True)
class PredictMessage:
    """A call of `Predict`.

    `inputs` are `TensorProto` messages. Empty `output_names` stand for all.
    """

    model: ModelSpec
    inputs: Mapping[str, Message]
    output_names: tuple[str, ...]


@dataclass(frozen=True)
class ExamplesMessage:
    """A call of `Classify` or `Regress`."""

    model: ModelSpec
    examples: tuple[Example, ...]
    method: str


@dataclass(frozen=True)
class Task:
    """One task of `MultiInference`. All tasks share their examples."""

    model: ModelSpec
    method: str


def parse_predict(data: bytes) -> PredictMessage:
    """Parses a `PredictRequest`."""
    message = parse_message(_SERVING + "PredictRequest", data)
    return PredictMessage(
        read_model_spec(message.model_spec), message.inputs, tuple(message.output_filter)
    )


def format_predict(call: PredictMessage, outputs: Mapping[str, Array], version: int) -> bytes:
    """Returns the `PredictResponse` of the version that answered."""
    message = new_message(_SERVING + "PredictResponse")
    answered_by = message.model_spec
    answered_by.name = call.model.name
    # TF Serving names the signature in the response even if the request names none.
    answered_by.signature_name = call.model.signature_name or SIGNATURE_NAME
    answered_by.version.value = version
    for name in call.output_names or outputs:
        if name not in outputs:
            raise InvalidInputError(unknown_name_message("output", name, outputs))
        write_tensor_proto(message.outputs[name], outputs[name])
    return bytes(message.SerializeToString())


def parse_examples(data: bytes, method: str) -> ExamplesMessage:
    """Parses a `ClassificationRequest` or a `RegressionRequest`, which must have examples."""
    message = parse_message(f"{_SERVING}{_RESULTS[method].kind}Request", data)
    model = read_model_spec(message.model_spec)
    return ExamplesMessage(model, _examples_of(message.input), method)


def format_examples(
    call: ExamplesMessage, results: Sequence[Classes] | Sequence[float], version: int
) -> bytes:
    """Returns the `ClassificationResponse` or `RegressionResponse` of the version that answered."""
    kind, _, write = _RESULTS[call.method]
    model = write_model_spec(replace(call.model, version=version))
    return write_message(f"{_SERVING}{kind}Response", result=write(results), model_spec=model)


def parse_multi_inference(data: bytes) -> tuple[tuple[Task, ...], tuple[Example, ...]]:
    """Returns the tasks of a `MultiInferenceRequest`, and the examples that they share.

    Raises `InvalidInputError` if the tasks name several models, name a signature twice, or neither
    classify nor regress.
    """
    message = parse_message(_SERVING + "MultiInferenceRequest", data)
    tasks = tuple(
        Task(read_model_spec(task.model_spec), task.method_name) for task in message.tasks
    )
    for task in tasks:
        if task.method not in _RESULTS:
            raise InvalidInputError(unknown_name_message("method_name", task.method, _RESULTS))
    models = {replace(task.model, signature_name="") for task in tasks}
    if len(models) != 1 or len({task.model.signature_name for task in tasks}) != len(tasks):
        raise InvalidInputError(
            f"Received {len(tasks)} tasks for {len(models)} models. Expected one or more tasks "
            "for one model, each with another signature_name."
        )
    return tasks, _examples_of(message.input)


def format_multi_inference(
    answers: Sequence[tuple[Task, Sequence[Classes] | Sequence[float]]], version: int
) -> bytes:
    """Returns the `MultiInferenceResponse` to tasks, each with its `read_results`.

    `version` is the one that answered.
    """
    message = new_message(_SERVING + "MultiInferenceResponse")
    for task, results in answers:
        _, field, write = _RESULTS[task.method]
        model = write_model_spec(replace(task.model, version=version))
        message.results.add(model_spec=model, **{field: write(results)})
    return bytes(message.SerializeToString())


def read_model_spec(message: Message) -> ModelSpec:
    """Parses a `ModelSpec` message."""
    return ModelSpec(
        message.name,
        message.version.value if message.HasField("version") else None,
        message.version_label,
        message.signature_name,
    )


def write_model_spec(model: ModelSpec) -> Message:
    """Creates the `ModelSpec` message of a model."""
    message = new_message(
        _SERVING + "ModelSpec", name=model.name, signature_name=model.signature_name
    )
    if model.version is not None:
        message.version.value = model.version
    return message


def _examples_of(message: Message) -> tuple[Example, ...]:
    """Returns the examples of an `Input` message, each with the features of the context."""
    if message.WhichOneof("kind") == "example_list_with_context":
        context = _features_of(message.example_list_with_context.context)
        examples = message.example_list_with_context.examples
    else:
        context, examples = {}, message.example_list.examples
    if not examples:
        raise InvalidInputError("Input is empty. Expected at least one example.")
    if len(examples) > MAX_EXAMPLES:
        raise InvalidInputError(
            f"Received {len(examples)} examples. Expected at most {MAX_EXAMPLES}."
        )
    return tuple({**context, **_features_of(example)} for example in examples)


def _features_of(example: Message) -> dict[str, Sequence[Any]]:
    features: dict[str, Sequence[Any]] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = getattr(feature, kind).value if kind else []
    return features


def _classification(results: Any) -> Message:
    message = new_message(_SERVING + "ClassificationResult")
    for classes in results:
        row = message.classifications.add()
        for label, score in classes:
            row.classes.add(label=label, score=score)
    return message


def _regression(results: Any) -> Message:
    message = new_message(_SERVING + "RegressionResult")
    for value in results:
        message.regressions.add(value=value)
    return message


class _Results(NamedTuple):
    """The protobuf names of a method (prefix of its messages, result's field), and a writer."""

    kind: str
    field: str
    write: Callable[[Any], Message]


_RESULTS = {
    CLASSIFY_METHOD: _Results("Classification", "classification_result", _classification),
    REGRESS_METHOD: _Results("Regression", "regression_result", _regression),
}
