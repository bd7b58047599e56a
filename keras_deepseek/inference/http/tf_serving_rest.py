"""TF Serving's REST calls: `/v1/models/NAME[/versions/V|/labels/L][:predict|...]`."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.loop_delivery import Settle
from keras_deepseek.inference.errors import ModelNotFoundError
from keras_deepseek.inference.http.answers import Route, answer_json, outputs_of, read_version
from keras_deepseek.inference.http.message import HttpError, HttpRequest, HttpResponse, Pending
from keras_deepseek.inference.models.failed_version import FailedVersion
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.states import find_states, version_status
from keras_deepseek.inference.protocols import tf_serving, tf_serving_examples

if TYPE_CHECKING:
    from keras_deepseek.inference.engine import ServingEngine
    from keras_deepseek.inference.http.http_server import HttpServer

_Inputs = dict[str, Array]

PROTOCOL = "tf_serving"
"""For the metrics."""


def status(server: "HttpServer", request: HttpRequest, match: re.Match[str]) -> HttpResponse:
    """Answers as GetModelStatus does: with one version, or with all."""
    name, version, label = _read(request, match)
    if label:
        found: Sequence[ModelVersion | FailedVersion] = [_find(server.engine, name, version, label)]
    else:
        found = find_states(server.engine.models.get(name), version)
        if not found:
            raise HttpError(404, tf_serving.no_version_message(name, version))
    request.trace.model = name
    return answer_json(
        tf_serving.format_versions([version_status(one, server.ready) for one in found])
    )


def metadata(server: "HttpServer", request: HttpRequest, match: re.Match[str]) -> HttpResponse:
    """Answers as GetModelMetadata does."""
    version = _find(server.engine, *_read(request, match))
    request.trace.model = version.name
    return answer_json(
        tf_serving.format_metadata(version.name, version.signature, str(version.number))
    )


def predict(server: "HttpServer", request: HttpRequest, match: re.Match[str]) -> Pending:
    """Answers with the outputs in the form, row or column, that the request has."""
    name, version, label = _read(request, match)
    server.check_ready(name)
    forms: list[bool] = []

    def bind(signature: Signature) -> _Inputs:
        call = tf_serving.parse_predict(request.body, signature)
        forms.append(call.is_row_form)
        return signature.bind(call.inputs)

    def encode(outputs: _Inputs) -> bytes:
        return tf_serving.encode_outputs(outputs, forms[-1])

    return _dispatch(server.engine, request, bind, encode, (name, version, label))


def answer_examples(
    server: "HttpServer", request: HttpRequest, match: re.Match[str], *, method: str
) -> Pending:
    """Answers with the classes, or the number, of each example."""
    name, version, label = _read(request, match)
    server.check_ready(name)
    rows: list[int] = []

    def bind(signature: Signature) -> _Inputs:
        inputs = tf_serving_examples.parse_examples(request.body, signature).inputs
        rows.append(len(next(iter(inputs.values()))))
        return inputs

    def encode(outputs: _Inputs) -> bytes:
        results = tf_serving_examples.read_results(method, outputs, rows[-1])
        return tf_serving_examples.encode_results(results)

    return _dispatch(server.engine, request, bind, encode, (name, version, label))


_CLASSIFY = partial(answer_examples, method=tf_serving_examples.CLASSIFY_METHOD)
_REGRESS = partial(answer_examples, method=tf_serving_examples.REGRESS_METHOD)
_MODEL = (
    r"/v1/models/(?P<name>[^/:]+)"
    r"(?:/versions/(?P<version>[^/:]+)|/labels/(?P<label>[^/:]+))?"
)

ROUTES = (
    Route("POST", re.compile(_MODEL + ":predict"), predict, PROTOCOL, "predict"),
    Route("POST", re.compile(_MODEL + ":classify"), _CLASSIFY, PROTOCOL, "classify"),
    Route("POST", re.compile(_MODEL + ":regress"), _REGRESS, PROTOCOL, "regress"),
    Route("GET", re.compile(_MODEL + "/metadata"), metadata, PROTOCOL, "metadata"),
    Route("GET", re.compile(_MODEL), status, PROTOCOL, "status"),
)


def _dispatch(
    engine: "ServingEngine",
    request: HttpRequest,
    bind: Callable[[Signature], _Inputs],
    encode: Callable[[_Inputs], bytes],
    asked: tuple[str, int | None, str],
) -> Pending:
    name, version, label = asked

    def start(settle: Settle) -> Callable[[], None]:
        try:
            return engine.dispatch(
                bind, settle, request.trace, model=name, version=version, label=label
            )[0]
        except ModelNotFoundError as error:
            raise _not_found(name, version, label) from error

    def respond(finished: Request) -> HttpResponse:
        return HttpResponse(body=encode(outputs_of(name, finished, request.trace)))

    return Pending(start, respond)


def _read(request: HttpRequest, match: re.Match[str]) -> tuple[str, int | None, str]:
    """Returns the model, version and label that the path names."""
    return match["name"], read_version(request, match), match["label"] or ""


def _find(engine: "ServingEngine", name: str, version: int | None, label: str) -> ModelVersion:
    try:
        return engine.find(name, version, label)
    except ModelNotFoundError as error:
        raise _not_found(name, version, label) from error


def _not_found(name: str, version: int | None, label: str) -> HttpError:
    if label:
        return HttpError(400, tf_serving.unknown_label_message(label))
    text = None if version is None else str(version)
    return HttpError(404, tf_serving.not_found_message(name, text))
