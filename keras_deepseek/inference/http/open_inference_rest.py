"""Open Inference's (KServe's V2) REST calls: `/v2/...`."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import keras_deepseek
from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.loop_delivery import Settle
from keras_deepseek.inference.http.answers import Route, answer_json, outputs_of, read_version
from keras_deepseek.inference.http.message import HttpRequest, HttpResponse, Pending
from keras_deepseek.inference.http.work import answer_later
from keras_deepseek.inference.models import control
from keras_deepseek.inference.models.states import PLATFORM, repository_states
from keras_deepseek.inference.protocols import open_inference, open_inference_models
from keras_deepseek.inference.protocols.open_inference_urgency import read_urgency

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer

_Match = re.Match[str]
_Inputs = dict[str, Array]

PROTOCOL = "open_inference"
"""For the metrics."""


def server_metadata(_server: "HttpServer", _request: HttpRequest, _match: _Match) -> HttpResponse:
    """Answers with the server's name, version and extensions."""
    content = open_inference_models.server_metadata("keras_deepseek", keras_deepseek.__version__)
    return answer_json(content)


def live(_server: "HttpServer", _request: HttpRequest, _match: _Match) -> HttpResponse:
    """Answers that the server runs."""
    return answer_json(open_inference_models.server_live())


def ready(server: "HttpServer", _request: HttpRequest, _match: _Match) -> HttpResponse:
    """Answers whether requests are answered."""
    content = open_inference_models.server_ready(server.ready)
    return answer_json(content, 200 if server.ready else 503)


def model_ready(server: "HttpServer", request: HttpRequest, match: _Match) -> HttpResponse:
    """Answers whether a model's requests are answered."""
    version = server.engine.find(match["name"], read_version(request, match))
    request.trace.model = version.name
    is_ready = server.ready and version.state == "AVAILABLE"
    content = open_inference_models.model_ready(version.name, is_ready)
    return answer_json(content, 200 if is_ready else 503)


def model_metadata(server: "HttpServer", request: HttpRequest, match: _Match) -> HttpResponse:
    """Answers with a model's inputs and outputs."""
    version = server.engine.find(match["name"], read_version(request, match))
    request.trace.model = version.name
    numbers = [str(number) for number in server.engine.models[version.name].versions]
    return answer_json(
        open_inference_models.model_metadata(version.name, version.signature, numbers, PLATFORM)
    )


def infer(server: "HttpServer", request: HttpRequest, match: _Match) -> Pending:
    """Answers with a model's outputs, as JSON or as raw bytes behind it."""
    name = match["name"]
    server.check_ready(name)
    length = request.headers.get(open_inference.HEADER.lower())
    call = open_inference.parse_infer(request.body, length)
    urgency = read_urgency(call.parameters)

    def bind(signature: Signature) -> _Inputs:
        call.check_outputs(spec.name for spec in signature.outputs)
        return signature.bind(call.inputs)

    version = read_version(request, match)

    def start(settle: Settle) -> Callable[[], None]:
        return server.engine.dispatch(
            bind,
            settle,
            request.trace,
            model=name,
            version=version,
            timeout=urgency.timeout,
            priority=urgency.priority,
        )[0]

    def respond(finished: Request) -> HttpResponse:
        body, header_length = open_inference.encode_infer(
            call, outputs_of(name, finished, request.trace), name, request.trace.version
        )
        if header_length is None:
            return HttpResponse(body=body)
        headers = ((open_inference.HEADER, str(header_length)),)
        return HttpResponse(200, body, "application/octet-stream", headers)

    return Pending(start, respond)


def repository_index(server: "HttpServer", request: HttpRequest, _match: _Match) -> HttpResponse:
    """Answers with every version of every model, and its state."""
    only_ready = open_inference_models.parse_repository_index(request.body)
    states = repository_states(server.engine.models)
    return answer_json(open_inference_models.repository_index(states, only_ready))


def repository_load(server: "HttpServer", request: HttpRequest, match: _Match) -> Pending:
    """Loads what a model's folder holds now; answers when that is served."""
    name = match["name"]

    def respond() -> HttpResponse:
        request.trace.model = name
        return answer_json(open_inference_models.repository_load(name))

    return answer_later(lambda: control.load(server.engine, name), respond)


def repository_unload(server: "HttpServer", request: HttpRequest, match: _Match) -> Pending:
    """Closes a model; answers when what it had accepted is answered."""
    name = match["name"]

    def respond() -> HttpResponse:
        request.trace.model = name
        return answer_json(open_inference_models.repository_unload(name))

    return answer_later(lambda: control.unload(server.engine, name), respond)


_IN_REPOSITORY = r"/v2/repository/models/(?P<name>[^/]+)"
_MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?"

ROUTES = (
    Route("POST", re.compile(_MODEL + "/infer"), infer, PROTOCOL, "infer"),
    Route("GET", re.compile(_MODEL + "/ready"), model_ready, PROTOCOL, "model_ready"),
    Route("GET", re.compile(_MODEL), model_metadata, PROTOCOL, "model_metadata"),
    Route("GET", re.compile("/v2/health/live"), live, PROTOCOL, "live", is_open=True),
    Route("GET", re.compile("/v2/health/ready"), ready, PROTOCOL, "ready", is_open=True),
    Route(
        "POST", re.compile("/v2/repository/index"), repository_index, PROTOCOL, "repository_index"
    ),
    Route(
        "POST", re.compile(_IN_REPOSITORY + "/load"), repository_load, PROTOCOL, "repository_load"
    ),
    Route(
        "POST",
        re.compile(_IN_REPOSITORY + "/unload"),
        repository_unload,
        PROTOCOL,
        "repository_unload",
    ),
    Route("GET", re.compile("/v2/?"), server_metadata, PROTOCOL, "server_metadata"),
)
