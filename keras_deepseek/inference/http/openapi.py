"""Describes an HTTP server, and the models that it serves, as an OpenAPI 3.1 document.

What each path takes and gives follows from the models' signatures (`openapi_schemas`). A test asks
that every route of the server is described here.
"""

from typing import TYPE_CHECKING, Any

from keras_deepseek import __version__
from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.inference.http import openapi_schemas
from keras_deepseek.inference.models.served_model import ServedModel

if TYPE_CHECKING:
    from keras_deepseek.inference.engine import ServingEngine

Schema = dict[str, Any]

_REFUSALS = {
    400: "What was sent does not fit.",
    401: "A token is asked for.",
    404: "There is no such model, version or path.",
    413: "The body is too large.",
    415: "The body's encoding is not supported.",
    429: "Too many requests wait. `Retry-After` says when to try again.",
    500: "The model failed, or could not be loaded.",
    503: "The server, or the model, starts or stops.",
    504: "The deadline passed.",
}
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}


def describe_server(engine: "ServingEngine", *, asks_for_tokens: bool = False) -> Schema:
    """Returns the document.

    Args:
        engine: `ServingEngine`. Its models as they are now.
        asks_for_tokens: boolean. Whether requests need one. Defaults to `False`.
    """
    paths = _server_paths()
    schemas: Schema = {
        "Error": {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}
    }
    for name, served in engine.models.items():
        if served.versions:
            signature = served.newest().signature
            schemas |= _model_schemas(name, signature)
            paths |= _tf_serving_paths(name, served, signature)
            paths |= _open_inference_paths(name, served)
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": f"Models served by keras_deepseek: {', '.join(engine.models)}",
            "version": __version__,
            "description": "TensorFlow Serving's REST calls and Open Inference's (KServe V2).",
        },
        "paths": paths,
        "components": {"schemas": schemas, "responses": _refusals()},
    }
    if asks_for_tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _model_schemas(name: str, signature: Signature) -> Schema:
    return {
        f"{name}.predict.request": openapi_schemas.predict_request(signature),
        f"{name}.predict.answer": openapi_schemas.predict_answer(signature),
        f"{name}.examples.request": openapi_schemas.examples_request(signature),
        f"{name}.infer.request": openapi_schemas.infer_request(signature),
        f"{name}.infer.answer": openapi_schemas.infer_answer(signature),
    }


def _tf_serving_paths(name: str, served: ServedModel, signature: Signature) -> Schema:
    calls = {"predict": f"{name}.predict.answer"}
    kinds = [openapi_schemas.kind_of(spec.dtype) for spec in signature.outputs]
    ranks = [len(spec.shape) for spec in signature.outputs]
    if kinds == ["number"] and ranks[0] in (1, 2):
        calls |= {"classify": ""} if ranks[0] > 1 else {}
        calls |= {"regress": ""} if signature.outputs[0].shape[1:] in ((), (1,)) else {}
    paths: Schema = {}
    for suffix, parameters in _addresses(served, with_labels=True):
        path = f"/v1/models/{name}{suffix}"
        where = {"parameters": parameters} if parameters else {}
        for call, answer in calls.items():
            asked = f"{name}.predict.request" if call == "predict" else f"{name}.examples.request"
            results = {"type": "object", "required": ["results"]}
            operation = _operation(
                f"{call.capitalize()} with {name!r}", _ref(answer) if answer else results
            )
            operation["requestBody"] = _json_body(asked)
            paths[f"{path}:{call}"] = {"post": operation, **where}
        states = {"type": "object", "required": ["model_version_status"]}
        paths[path] = {"get": _operation(f"The state of {name!r}", states), **where}
        metadata = {"type": "object", "required": ["model_spec", "metadata"]}
        paths[f"{path}/metadata"] = {
            "get": _operation(f"Inputs, outputs of {name!r}", metadata),
            **where,
        }
    return paths


def _open_inference_paths(name: str, served: ServedModel) -> Schema:
    paths: Schema = {}
    for suffix, parameters in _addresses(served, with_labels=False):
        path = f"/v2/models/{name}{suffix}"
        where = {"parameters": parameters} if parameters else {}
        infer = _operation(f"Infer with {name!r}", _ref(f"{name}.infer.answer"))
        # With a binary body, or where outputs are asked for as raw bytes, JSON is but the begin.
        infer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": {}}
        infer["requestBody"] = _json_body(f"{name}.infer.request")
        paths[f"{path}/infer"] = {"post": infer, **where}
        ready = {"type": "object", "properties": {"ready": _FLAG}, "required": ["name", "ready"]}
        operation = _operation(f"Whether {name!r} answers", ready)
        operation["responses"]["503"] = _answer("It does not.", {"anyOf": [ready, _ref("Error")]})
        paths[f"{path}/ready"] = {"get": operation, **where}
        metadata = {"type": "object", "required": ["name", "versions", "inputs", "outputs"]}
        paths[path] = {"get": _operation(f"Inputs and outputs of {name!r}", metadata), **where}
    return paths


def _addresses(served: ServedModel, *, with_labels: bool) -> list[tuple[str, list[Schema]]]:
    """Returns what may stand behind a model's name, with the parameters that it has."""
    numbers = [str(number) for number in served.versions]
    found: list[tuple[str, list[Schema]]] = [
        ("", []),
        ("/versions/{version}", [_path_parameter("version", numbers)]),
    ]
    if with_labels and served.labels:
        found.append(("/labels/{label}", [_path_parameter("label", list(served.labels))]))
    return found


def _server_paths() -> Schema:
    def get(summary: str, schema: Schema, kind: str = "application/json") -> Schema:
        return {"get": _operation(summary, schema, kind)}

    def is_open(path: Schema) -> Schema:
        return {method: operation | {"security": []} for method, operation in path.items()}

    ready = {"type": "object", "properties": {"ready": _FLAG}, "required": ["ready"]}
    live = {"type": "object", "properties": {"live": _FLAG}, "required": ["live"]}
    ready_path = get("Whether requests are answered", ready)
    ready_path["get"]["responses"]["503"] = _answer("They are not.", ready)
    metrics = get("Numbers for Prometheus", _TEXT, "text/plain")
    metrics["get"]["responses"]["200"]["content"]["application/openmetrics-text"] = {
        "schema": _TEXT
    }
    state = {"type": "object", "required": ["name", "version", "state", "reason"]}
    index = _operation("All versions of all models", {"type": "array", "items": state})
    index["requestBody"] = {
        "content": {
            "application/json": {"schema": {"type": "object", "properties": {"ready": _FLAG}}}
        }
    }
    return {
        "/": is_open(get("A page to try the models", _TEXT, "text/html")),
        "/openapi.json": get("This description", _OBJECT),
        "/healthz": is_open(get("Whether requests are answered", _OBJECT)),
        "/metrics": metrics,
        "/monitoring/prometheus/metrics": metrics,
        "/v2": get("The server's name, version and extensions", _OBJECT),
        "/v2/health/live": is_open(get("Whether the server runs", live)),
        "/v2/health/ready": is_open(ready_path),
        "/v2/repository/index": {"post": index},
        **_repository_paths(),
    }


def _repository_paths() -> Schema:
    name = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    summaries = {
        "load": "Serve what the model's folder holds now",
        "unload": "Close the model",
    }
    return {
        f"/v2/repository/models/{{name}}/{call}": {
            "parameters": [name],
            "post": _operation(
                summary,
                {
                    "type": "object",
                    "properties": {"name": _TEXT, call: _FLAG},
                    "required": ["name", call],
                },
            ),
        }
        for call, summary in summaries.items()
    }


def _operation(summary: str, schema: Schema, kind: str = "application/json") -> Schema:
    refused = {str(status): {"$ref": f"#/components/responses/{status}"} for status in _REFUSALS}
    return {"summary": summary, "responses": {"200": _answer("OK.", schema, kind), **refused}}


def _answer(description: str, schema: Schema, kind: str = "application/json") -> Schema:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _refusals() -> Schema:
    return {str(status): _answer(text, _ref("Error")) for status, text in _REFUSALS.items()}


def _json_body(schema: str) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": _ref(schema)}}}


def _path_parameter(name: str, values: list[str]) -> Schema:
    schema = {"type": "string", "enum": values}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _ref(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}
