"""Describes an HTTP server, and the models that it serves, as an OpenAPI 3.1 document.

The paths are those of the server's routes. A route with an `Operation` is one path. A route with a
function is one path for each model that can answer it.
"""

from collections.abc import Iterable, Mapping

from keras_deepseek import __version__
from keras_deepseek.inference.dispatcher import Dispatcher
from keras_deepseek.inference.http.routing import (
    ERROR,
    TEXT,
    DescribeModel,
    ErrorForm,
    Operation,
    Route,
    Schema,
)
from keras_deepseek.inference.models.served_model import ServedModel

_ERRORS = {
    400: "The request does not fit the model, or is malformed.",
    401: "The server asks for a token.",
    403: "Loading and unloading is off, or needs a management token.",
    404: "There is no such model, version or path.",
    413: "The body is too large.",
    415: "The body's encoding is not supported.",
    429: "Too many requests wait. `Retry-After` says when to try again.",
    500: "The model failed, or could not be loaded.",
    503: "The server, or the model, starts or stops.",
    504: "The deadline passed.",
}


def describe_server(
    engine: Dispatcher, routes: Iterable[Route], root: str = "", *, asks_for_tokens: bool = False
) -> Schema:
    """Returns the document of a server that has these routes, with the models as they are now.

    `root` is the path at which another application mounts the server's.
    """
    routes = tuple(routes)
    protocols = dict.fromkeys(route.protocol for route in routes if route.protocol != "http")
    forms = {route.error_form.name: route.error_form for route in routes}
    paths: dict[str, Schema] = {}
    schemas: Schema = {name: form.schema for name, form in forms.items()}
    for route in routes:
        if route.operation is not None:
            parameters = _parameters(route.path, {})
            _add(paths, route, route.path, parameters, route.operation)
        if route.describe_model is not None:
            for name, served in engine.models.items():
                if served.versions:
                    _add_model(paths, schemas, route, route.describe_model, name, served)
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": f"Models served by keras_deepseek: {', '.join(engine.models)}",
            "version": __version__,
            "description": f"Protocols: {', '.join(protocols)}.",
        },
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                _response_key(form, status): _content(text, _reference(form.name))
                for form in forms.values()
                for status, text in _ERRORS.items()
            },
        },
    }
    if asks_for_tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _add_model(
    paths: dict[str, Schema],
    schemas: Schema,
    route: Route,
    describe_model: DescribeModel,
    name: str,
    served: ServedModel,
) -> None:
    """Adds a route's OpenAPI operation for one model, and its schemas as components."""
    path = route.path.replace("{name}", name)
    values = {"version": [str(number) for number in served.versions], "label": list(served.labels)}
    version = served.newest()
    is_refused = version.is_text and route.method == "POST"  # It takes no tensors.
    operation = None if is_refused else describe_model(name, version.signature)
    if operation is None or ("{label}" in path and not served.labels):
        return

    def refer(part: str, schema: Schema) -> Schema:
        key = f"{name}.{route.call}.{part}"
        schemas[key] = schema
        return _reference(key)

    operation = operation._replace(
        answer=refer("answer", operation.answer),
        body=None if operation.body is None else refer("request", operation.body),
    )
    _add(paths, route, path, _parameters(path, values), operation)


def _add(
    paths: dict[str, Schema],
    route: Route,
    path: str,
    parameters: list[Schema],
    operation: Operation,
) -> None:
    methods = paths.setdefault(path, {"parameters": parameters} if parameters else {})
    methods[route.method.lower()] = _describe(route, operation)


def _parameters(path: str, values: Mapping[str, list[str]]) -> list[Schema]:
    """Describes the parameters of a URL path for OpenAPI. `values` has the known values of some."""
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": TEXT | ({"enum": values[name]} if name in values else {}),
        }
        for name in (part.partition("}")[0] for part in path.split("{")[1:])
    ]


def _describe(route: Route, operation: Operation) -> Schema:
    answer = _content("OK.", operation.answer, operation.answer_type)
    answer["content"] |= {
        kind: {"schema": schema} for kind, schema in operation.other_answers.items()
    }
    form = route.error_form
    refused = {
        str(status): {"$ref": f"#/components/responses/{_response_key(form, status)}"}
        for status in _ERRORS
    }
    described: Schema = {"summary": operation.summary, "responses": {"200": answer, **refused}}
    if operation.answer_503 is not None:
        schema = {"anyOf": [operation.answer_503, _reference(form.name)]}
        described["responses"]["503"] = _content("Not ready.", schema)
    if operation.body is not None:
        described["requestBody"] = {"content": {"application/json": {"schema": operation.body}}}
        if not operation.is_body_optional:
            described["requestBody"]["required"] = True
    if route.is_open:
        described["security"] = []
    return described


def _reference(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _response_key(form: ErrorForm, status: int) -> str:
    return str(status) if form is ERROR else f"{form.name}.{status}"


def _content(description: str, schema: Schema, kind: str = "application/json") -> Schema:
    return {"description": description, "content": {kind: {"schema": schema}}}
