"""TF Serving's PredictionService and ModelService: predictions, signatures, states, and reloads."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.inference.arguments import RequestOptions
from keras_deepseek.inference.errors import ModelNotFoundError
from keras_deepseek.inference.grpc.answers import (
    Bind,
    Inputs,
    StatusError,
    UnaryCall,
    dispatch,
    note_model,
    outputs_of,
)
from keras_deepseek.inference.models.served_model import find_states, version_status
from keras_deepseek.inference.models.version import FailedVersion, Version
from keras_deepseek.inference.monitoring.request_trace import current_trace
from keras_deepseek.inference.protocols import (
    tf_serving,
    tf_serving_examples,
    tf_serving_grpc,
    tf_serving_model_service,
)
from keras_deepseek.inference.protocols.tensor_proto import bind_tensor_protos
from keras_deepseek.inference.protocols.tf_serving_grpc import ModelSpec
from keras_deepseek.inference.server.service import Service


async def predict(service: Service, data: bytes, timeout: float | None) -> bytes:
    """Answers a `PredictRequest`."""
    call = tf_serving_grpc.parse_predict(data)

    def bind(signature: Signature) -> Inputs:
        if call.output_names:
            _check_outputs(call.output_names, signature)
        return bind_tensor_protos(call.inputs, signature)

    outputs, version = await _ask(service, call.model, bind, timeout)
    return tf_serving_grpc.format_predict(call, outputs, version)


async def answer_examples(
    service: Service, data: bytes, timeout: float | None, *, method: str
) -> bytes:
    """Answers a `ClassificationRequest` or a `RegressionRequest`."""
    call = tf_serving_grpc.parse_examples(data, method)
    outputs, version = await _ask_examples(service, call.model, call.examples, timeout)
    results = tf_serving_examples.read_results(method, outputs, len(call.examples))
    return tf_serving_grpc.format_examples(call, results, version)


async def multi_inference(service: Service, data: bytes, timeout: float | None) -> bytes:
    """Answers a `MultiInferenceRequest`. The model runs once for all tasks."""
    tasks, examples = tf_serving_grpc.parse_multi_inference(data)
    for task in tasks:
        tf_serving.check_signature_name(task.model.signature_name)
    outputs, version = await _ask_examples(service, tasks[0].model, examples, timeout)
    answers = [
        (task, tf_serving_examples.read_results(task.method, outputs, len(examples)))
        for task in tasks
    ]
    return tf_serving_grpc.format_multi_inference(answers, version)


async def metadata(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Answers a `GetModelMetadataRequest`."""
    model = tf_serving_model_service.parse_metadata(data)
    version = find(service, model)
    return tf_serving_model_service.format_metadata(
        replace(model, version=version.number), version.signature
    )


async def status(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Answers a `GetModelStatusRequest` for one version of a model or for all."""
    model = tf_serving_model_service.parse_status(data)
    check_named(service, model)
    statuses = [version_status(version, service.ready) for version in _versions(service, model)]
    return tf_serving_model_service.format_status(statuses)


async def reload_config(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Replaces the models by those of a `ReloadConfigRequest`; answers when they are served."""
    models = tf_serving_model_service.parse_reload(data)
    service.check_ready(service.engine.name)
    await asyncio.to_thread(service.engine.repository.replace_models, models)
    return tf_serving_model_service.format_reload()


def find(service: Service, model: ModelSpec) -> Version:
    """Returns the model version that a request names.

    Raises:
        InvalidInputError: The request names no model.
        StatusError: There is no such model, version or label.
    """
    check_named(service, model)
    try:
        return service.engine.find(model.name, version_of(model), model.label)
    except ModelNotFoundError as error:
        raise _not_found(model, error) from error


def version_of(model: ModelSpec) -> int | None:
    """Returns the version number in a request, or `None` for the newest.

    Versions start at 1. OpenVINO's client sends 0 for the newest.
    """
    return model.version or None


def check_named(service: Service, model: ModelSpec) -> None:
    """Raises `InvalidInputError`, with TF Serving's message, if a request names no model.

    Else the call counts as one to that model.
    """
    if not model.name:
        raise InvalidInputError("ModelSpec has no name specified.")
    note_model(service, model.name)


PREDICTION_CALLS: dict[str, UnaryCall] = {
    "Predict": predict,
    "Classify": partial(answer_examples, method=tf_serving_examples.CLASSIFY_METHOD),
    "Regress": partial(answer_examples, method=tf_serving_examples.REGRESS_METHOD),
    "MultiInference": multi_inference,
    "GetModelMetadata": metadata,
}


MODEL_CALLS: dict[str, UnaryCall] = {
    "GetModelStatus": status,
    "HandleReloadConfigRequest": reload_config,
}


def _versions(service: Service, model: ModelSpec) -> Sequence[Version | FailedVersion]:
    if model.label:
        return [find(service, model)]
    version = version_of(model)
    states = find_states(service.engine.models.get(model.name), version)
    if not states:
        raise StatusError("NOT_FOUND", tf_serving.no_version_message(model.name, version))
    return states


async def _ask_examples(
    service: Service,
    model: ModelSpec,
    examples: Sequence[tf_serving_examples.Example],
    timeout: float | None,
) -> tuple[Inputs, int]:
    bind = partial(tf_serving_examples.bind_examples, examples)
    return await _ask(service, model, bind, timeout)


async def _ask(
    service: Service, model: ModelSpec, bind: Bind, timeout: float | None
) -> tuple[Inputs, int]:
    """Runs the model that a request names; returns the outputs and the version's number."""
    check_named(service, model)
    tf_serving.check_signature_name(model.signature_name)
    options: RequestOptions = {
        "version": version_of(model),
        "label": model.label,
        "timeout": timeout,
    }
    try:
        future, version = dispatch(service, model.name, bind, **options)
    except ModelNotFoundError as error:
        raise _not_found(model, error) from error
    return await outputs_of(model.name, future, current_trace.get()), version.number


def _check_outputs(names: Sequence[str], signature: Signature) -> None:
    output_names = {spec.name for spec in signature.outputs}
    for name in names:
        if name not in output_names:
            raise InvalidInputError(unknown_name_message("output", name, output_names))


def _not_found(model: ModelSpec, error: ModelNotFoundError) -> StatusError:
    """Returns TF Serving's error, followed by the models, versions or labels that there are."""
    if model.label:
        text = tf_serving.unknown_label_message(model.label)
        return StatusError("INVALID_ARGUMENT", f"{text}. {error}")
    version = version_of(model)
    number = None if version is None else str(version)
    return StatusError("NOT_FOUND", f"{tf_serving.not_found_message(model.name, number)}. {error}")
