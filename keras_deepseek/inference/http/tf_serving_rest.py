"""TF Serving's REST calls: `/v1/models/NAME[/versions/V|/labels/L][:predict|...]`."""

from collections.abc import Callable, Sequence
from functools import partial

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.inference.arguments import RequestOptions
from keras_deepseek.inference.dispatcher import Dispatcher
from keras_deepseek.inference.errors import ModelNotFoundError
from keras_deepseek.inference.http import openapi_schemas
from keras_deepseek.inference.http.answers import (
    Inputs,
    answer_json,
    dispatch,
    read_model_body,
    read_version,
)
from keras_deepseek.inference.http.message import HttpError, HttpRequest, HttpResponse
from keras_deepseek.inference.http.openai_rest import answer_model
from keras_deepseek.inference.http.routing import (
    LIST,
    OBJECT,
    DescribeModel,
    Handler,
    Operation,
    Route,
    fields,
)
from keras_deepseek.inference.models.served_model import find_states, version_status
from keras_deepseek.inference.models.version import FailedVersion, Version
from keras_deepseek.inference.protocols import tf_serving, tf_serving_examples
from keras_deepseek.inference.server.service import Service

PROTOCOL = "tf_serving"
"""The label of the metrics."""


async def status(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers with the state of one version, or of all, as GetModelStatus does."""
    name, version, label = _read(request)
    if label:
        states: Sequence[Version | FailedVersion] = [_find(service.engine, name, version, label)]
    else:
        states = find_states(service.engine.models.get(name), version)
        if not states:
            raise HttpError(404, tf_serving.no_version_message(name, version))
    content = tf_serving.format_versions([version_status(state, service.ready) for state in states])
    if version is None and not label:
        # OpenAI's clients ask for a model at the same address. Each client reads its own fields.
        return answer_model(service, name, content)
    return answer_json(content)


async def metadata(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers with the signature of a version, as GetModelMetadata does."""
    version = _find(service.engine, *_read(request))
    return answer_json(
        tf_serving.format_metadata(version.name, version.signature, str(version.number))
    )


async def predict(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers with a model's outputs in the form of the request, rows or columns."""
    service.check_ready(request.parameters["name"])
    body = await _read_body(service, request)
    forms: list[bool] = []

    def bind(signature: Signature) -> Inputs:
        call = tf_serving.parse_predict(body, signature)
        forms.append(call.is_row_form)
        return signature.bind(call.inputs)

    outputs = await _dispatch(service, request, bind, body)
    return HttpResponse(body=tf_serving.encode_outputs(outputs, forms[-1]))


async def answer_examples(service: Service, request: HttpRequest, *, method: str) -> HttpResponse:
    """Answers with the predicted classes, or the predicted number, of each example."""
    service.check_ready(request.parameters["name"])
    body = await _read_body(service, request)
    rows: list[int] = []

    def bind(signature: Signature) -> Inputs:
        inputs = tf_serving_examples.parse_examples(body, signature)
        rows.append(len(next(iter(inputs.values()))))
        return inputs

    outputs = await _dispatch(service, request, bind, body)
    results = tf_serving_examples.read_results(method, outputs, rows[-1])
    return HttpResponse(body=tf_serving_examples.encode_results(results))


async def _read_body(service: Service, request: HttpRequest) -> bytes:
    return await read_model_body(service, request, _find(service.engine, *_read(request)))


async def _dispatch(
    service: Service, request: HttpRequest, bind: Callable[[Signature], Inputs], body: bytes
) -> Inputs:
    name, version, label = _read(request)
    not_found = partial(_not_found, name, version, label)
    options: RequestOptions = {"version": version, "label": label}
    return await dispatch(service, request, name, bind, text=body, not_found=not_found, **options)


def _describe_predict(name: str, signature: Signature) -> Operation:
    return Operation(
        f"Predict with {name!r}",
        openapi_schemas.predict_answer(signature),
        body=openapi_schemas.predict_request(signature),
    )


def _describe_classify(name: str, signature: Signature) -> Operation | None:
    row = _row_of_scores(signature)
    if row is None or len(row) != 1:
        return None
    return _describe_examples(f"Classify with {name!r}", signature)


def _describe_regress(name: str, signature: Signature) -> Operation | None:
    if _row_of_scores(signature) not in ((), (1,)):
        return None
    return _describe_examples(f"Regress with {name!r}", signature)


def _describe_examples(summary: str, signature: Signature) -> Operation:
    body = openapi_schemas.examples_request(signature)
    return Operation(summary, fields({"results": {}}), body=body)


def _row_of_scores(signature: Signature) -> tuple[int | None, ...] | None:
    """Returns the row shape of a model's only output, or `None` if it is not one numeric output."""
    if [openapi_schemas.kind_of(spec.dtype) for spec in signature.outputs] != ["number"]:
        return None
    return signature.outputs[0].shape[1:]


def _describe_metadata(name: str, _signature: Signature) -> Operation:
    answer = fields({"model_spec": OBJECT, "metadata": OBJECT})
    return Operation(f"Inputs and outputs of {name!r}", answer)


def _describe_status(name: str, _signature: Signature) -> Operation:
    answer = fields({"model_version_status": LIST})
    return Operation(f"State of {name!r}", answer)


_ADDRESSES = (
    "/v1/models/{name}",
    "/v1/models/{name}/versions/{version}",
    "/v1/models/{name}/labels/{label}",
)
_CLASSIFY = partial(answer_examples, method=tf_serving_examples.CLASSIFY_METHOD)
_REGRESS = partial(answer_examples, method=tf_serving_examples.REGRESS_METHOD)
_CALLS: tuple[tuple[str, str, Handler, str, DescribeModel], ...] = (
    ("POST", ":predict", predict, "predict", _describe_predict),
    ("POST", ":classify", _CLASSIFY, "classify", _describe_classify),
    ("POST", ":regress", _REGRESS, "regress", _describe_regress),
    ("GET", "/metadata", metadata, "metadata", _describe_metadata),
    ("GET", "", status, "status", _describe_status),
)

ROUTES = tuple(
    Route(
        method,
        address + suffix,
        handler,
        PROTOCOL,
        call,
        describe_model=describe,
        is_refused_early=method == "POST",
        is_cross_origin=True,
    )
    for method, suffix, handler, call, describe in _CALLS
    for address in _ADDRESSES
)


def _read(request: HttpRequest) -> tuple[str, int | None, str]:
    parameters = request.parameters
    return parameters["name"], read_version(parameters), parameters.get("label", "")


def _find(engine: Dispatcher, name: str, version: int | None, label: str) -> Version:
    try:
        return engine.find(name, version, label)
    except ModelNotFoundError as error:
        raise _not_found(name, version, label, error) from error


def _not_found(name: str, version: int | None, label: str, error: ModelNotFoundError) -> HttpError:
    """Returns TF Serving's error, followed by the models, versions or labels that there are."""
    if label:
        return HttpError(400, f"{tf_serving.unknown_label_message(label)}. {error}")
    text = None if version is None else str(version)
    return HttpError(404, f"{tf_serving.not_found_message(name, text)}. {error}")
