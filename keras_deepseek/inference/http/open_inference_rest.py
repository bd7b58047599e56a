"""Open Inference's (KServe's V2) REST calls: `/v2/...`."""

import asyncio
from functools import partial
from typing import Any

import keras_deepseek
from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.inference.http import openapi_schemas
from keras_deepseek.inference.http.answers import (
    Inputs,
    answer_json,
    check_values,
    dispatch,
    read_model_body,
    read_version,
)
from keras_deepseek.inference.http.body import THREAD_BYTES, compute, read_body
from keras_deepseek.inference.http.cross_origin import refuse_other_sites
from keras_deepseek.inference.http.message import HttpRequest, HttpResponse
from keras_deepseek.inference.http.routing import (
    FLAG,
    LIST,
    OBJECT,
    TEXT,
    Handler,
    Operation,
    Route,
    Schema,
    fields,
)
from keras_deepseek.inference.models.open_version import as_tensor_version
from keras_deepseek.inference.models.served_model import PLATFORM, repository_states
from keras_deepseek.inference.protocols import open_inference, open_inference_models
from keras_deepseek.inference.protocols.json_text import load_object
from keras_deepseek.inference.protocols.open_inference_parameters import read_timeout_and_priority
from keras_deepseek.inference.protocols.shared_memory import SharedMemory
from keras_deepseek.inference.server.service import Service

PROTOCOL = "open_inference"
"""The label of the metrics."""


async def server_metadata(service: Service, _request: HttpRequest) -> HttpResponse:
    """Answers with the server's name, version and extensions."""
    content = open_inference_models.server_metadata(
        "keras_deepseek",
        keras_deepseek.__version__,
        has_shared_memory=service.options.shared_memory,
    )
    return answer_json(content)


async def live(_service: Service, _request: HttpRequest) -> HttpResponse:
    """Answers 200, because the server is alive."""
    return answer_json({"live": True})


async def ready(service: Service, _request: HttpRequest) -> HttpResponse:
    """Answers 200 if the server is ready, else 503."""
    return answer_json({"ready": service.ready}, 200 if service.ready else 503)


async def model_ready(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers 200 if the model is ready, else 503."""
    version = service.engine.find(request.parameters["name"], read_version(request.parameters))
    is_ready = service.ready and version.state == "AVAILABLE"
    return answer_json({"name": version.name, "ready": is_ready}, 200 if is_ready else 503)


async def model_metadata(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers with the inputs and outputs of a model."""
    version = service.engine.find(request.parameters["name"], read_version(request.parameters))
    numbers = [str(number) for number in service.engine.models[version.name].versions]
    return answer_json(
        open_inference_models.model_metadata(version.name, version.signature, numbers, PLATFORM)
    )


async def infer(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers with the outputs of a model, as JSON or as raw bytes after the JSON."""
    name, version = request.parameters["name"], read_version(request.parameters)
    service.check_ready(name)  # Before a body is read in vain.
    model_version = as_tensor_version(service.engine.find(name, version))
    body = await read_model_body(service, request, model_version)
    json_length = request.headers.get(open_inference.HEADER.lower())
    if len(body) > THREAD_BYTES:
        text: bytes | memoryview = body
        if json_length and json_length.isdecimal():  # `parse_infer` refuses another length.
            # The JSON comes before raw bytes. Ten digits are enough: Python can't read thousands.
            text = memoryview(body)[: int(json_length[:10])]
        await compute(len(body), check_values, text, model_version)
    open_memory = partial(_open_memory, service, request)
    call = await compute(len(body), open_inference.parse_infer, body, json_length, open_memory)
    max_bytes = service.options.max_body_bytes
    call = await compute(call.shared_input_bytes, call.read_shared, max_bytes)
    order = read_timeout_and_priority(call.parameters)

    def bind(signature: Signature) -> Inputs:
        call.check_outputs(spec.name for spec in signature.outputs)
        return signature.bind(call.inputs)

    outputs = await dispatch(
        service,
        request,
        name,
        bind,
        version=version,
        timeout=order.timeout,
        priority=order.priority,
    )
    version_name = request.trace.version
    answer, header_length = await compute(
        call.shared_output_bytes, open_inference.encode_infer, call, outputs, name, version_name
    )
    if header_length is None:
        return HttpResponse(body=answer)
    headers = ((open_inference.HEADER, str(header_length)),)
    return HttpResponse(200, answer, "application/octet-stream", headers)


async def repository_index(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers with the state of every version of every model."""
    body = await read_body(request, service.options.max_body_bytes)
    only_ready = open_inference_models.parse_repository_index(body)
    states = repository_states(service.engine.models)
    return answer_json(open_inference_models.repository_index(states, only_ready))


async def repository_load(service: Service, request: HttpRequest) -> HttpResponse:
    """Loads the versions in a model's folder. Answers when they are served."""
    name = request.parameters["name"]
    await asyncio.to_thread(service.engine.repository.load_folder, name)
    request.trace.model = name
    return answer_json({"name": name, "load": True})


async def repository_unload(service: Service, request: HttpRequest) -> HttpResponse:
    """Closes a model. Answers when its accepted requests are answered."""
    name = request.parameters["name"]
    await asyncio.to_thread(service.engine.repository.unload, name)
    return answer_json({"name": name, "unload": True})


async def system_shared_memory_status(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers with the registered regions of shared memory, or with the one that is named."""
    name = request.parameters.get("name", "")
    return answer_json(_open_memory(service, request).status(name))


async def system_shared_memory_register(service: Service, request: HttpRequest) -> HttpResponse:
    """Registers a region of shared memory, which the client has created."""
    memory = _open_memory(service, request)
    body = await read_body(request, service.options.max_body_bytes)
    region = load_object(body, "with 'key', 'offset' and 'byte_size'")
    memory.register(
        request.parameters["name"],
        region.get("key"),
        region.get("offset", 0),
        region.get("byte_size"),
    )
    return answer_json({})


async def system_shared_memory_unregister(service: Service, request: HttpRequest) -> HttpResponse:
    """Forgets a region of shared memory, or all regions."""
    _open_memory(service, request).unregister(request.parameters.get("name", ""))
    return answer_json({})


async def cuda_shared_memory_unregister(service: Service, request: HttpRequest) -> HttpResponse:
    """Does nothing: no CUDA memory can be registered. Triton's examples begin with this call."""
    _open_memory(service, request)
    return answer_json({})


def _open_memory(service: Service, request: HttpRequest) -> SharedMemory:
    """Returns the regions for a client on this machine, which is no page of another site."""
    refuse_other_sites(request)
    is_forwarded = not {"forwarded", "x-forwarded-for"}.isdisjoint(request.headers)
    return service.open_shared_memory("" if is_forwarded else request.client)


def _describe_infer(name: str, signature: Signature) -> Operation:
    return Operation(
        f"Infer with {name!r}",
        openapi_schemas.infer_answer(signature),
        # Outputs may be asked for as raw bytes behind the JSON.
        other_answers={"application/octet-stream": {}},
        body=openapi_schemas.infer_request(signature),
    )


def _describe_ready(name: str, _signature: Signature) -> Operation:
    answer = fields({"name": TEXT, "ready": FLAG})
    return Operation(f"Readiness of {name!r}", answer, answer_503=answer)


def _describe_metadata(name: str, _signature: Signature) -> Operation:
    answer = fields({"name": TEXT, "versions": LIST, "inputs": LIST, "outputs": LIST})
    return Operation(f"Inputs and outputs of {name!r}", answer)


_LIVE = Operation("Liveness of the server", fields({"live": FLAG}))
_READY = Operation(
    "Readiness of the server", fields({"ready": FLAG}), answer_503=fields({"ready": FLAG})
)
_INDEX = Operation(
    "All versions of all models",
    {
        "type": "array",
        "items": fields(dict.fromkeys(("name", "version", "state", "reason"), TEXT)),
    },
    body=fields({}, ready=FLAG),
    is_body_optional=True,
)
_LOAD = Operation("Load what the model's folder holds now", fields({"name": TEXT, "load": FLAG}))
_UNLOAD = Operation("Unload the model", fields({"name": TEXT, "unload": FLAG}))
_NUMBER: Schema = {"type": "integer"}
_REGIONS = Operation("Registered regions of shared memory", LIST)
_REGISTER = Operation(
    "Register shared memory of the client",
    OBJECT,
    body=fields({"key": TEXT, "byte_size": _NUMBER}, offset=_NUMBER),
)
_UNREGISTER = Operation("Forget registered shared memory", OBJECT)
_SERVER = Operation("The server's name, version and extensions", OBJECT)

_ADDRESSES = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
_IN_REPOSITORY = "/v2/repository/models/{name}"
_MEMORY = "/v2/systemsharedmemory"
_IN_MEMORY = _MEMORY + "/region/{name}"


def _route(method: str, path: str, handler: Handler, **options: Any) -> Route:
    """Returns an Open Inference route whose call name is that of its handler."""
    return Route(method, path, handler, PROTOCOL, handler.__name__, **options)


ROUTES = (
    *(
        _route(method, address + suffix, handler, describe_model=describe, is_cross_origin=True)
        for method, suffix, handler, describe in (
            ("POST", "/infer", infer, _describe_infer),
            ("GET", "/ready", model_ready, _describe_ready),
            ("GET", "", model_metadata, _describe_metadata),
        )
        for address in _ADDRESSES
    ),
    *(
        _route("GET", path, handler, operation=operation, is_open=True, is_cross_origin=True)
        for path, handler, operation in (
            ("/v2/health/live", live, _LIVE),
            ("/v2/health/ready", ready, _READY),
        )
    ),
    _route("POST", "/v2/repository/index", repository_index, operation=_INDEX),
    *(
        _route("POST", _IN_REPOSITORY + suffix, handler, operation=operation, is_management=True)
        for suffix, handler, operation in (
            ("/load", repository_load, _LOAD),
            ("/unload", repository_unload, _UNLOAD),
        )
    ),
    *(
        _route(method, path, handler, operation=operation, is_local=True)
        for method, path, handler, operation in (
            ("GET", f"{_MEMORY}/status", system_shared_memory_status, _REGIONS),
            ("GET", _IN_MEMORY + "/status", system_shared_memory_status, _REGIONS),
            ("POST", _IN_MEMORY + "/register", system_shared_memory_register, _REGISTER),
            ("POST", _IN_MEMORY + "/unregister", system_shared_memory_unregister, _UNREGISTER),
            ("POST", f"{_MEMORY}/unregister", system_shared_memory_unregister, _UNREGISTER),
            ("POST", "/v2/cudasharedmemory/unregister", cuda_shared_memory_unregister, _UNREGISTER),
        )
    ),
    _route("GET", "/v2", server_metadata, operation=_SERVER, is_cross_origin=True),
    _route("GET", "/v2/", server_metadata, is_cross_origin=True),
)
