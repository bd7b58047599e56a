"""The table of routes: each path is written once, as a template, with its OpenAPI description."""

import difflib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.inference.http.message import HttpError, HttpRequest, HttpResponse
from keras_deepseek.inference.server.service import Service

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
LIST: Schema = {"type": "array"}
OBJECT: Schema = {"type": "object"}


class Operation(NamedTuple):
    """The OpenAPI description of a call: one path and one method.

    `openapi` makes its part of the document.

    Args:
        answer: The JSON schema of the answer.
        answer_type: The content type of the answer.
        other_answers: Schemas by further content types of the answer.
        answer_503: The schema of the answer with the status 503. `None`: it is an error.
        body: The schema of the request's body. `None`: it has none.
    """

    summary: str
    answer: Schema
    answer_type: str = "application/json"
    other_answers: Mapping[str, Schema] = {}
    answer_503: Schema | None = None
    body: Schema | None = None
    is_body_optional: bool = False


class ErrorForm(NamedTuple):
    """The JSON in which a protocol answers errors.

    Args:
        name: The name of the schema in the OpenAPI document.
        schema: The JSON schema of what `make` returns.
        make: Returns the content of the answer, from the message, the HTTP status, the path of the
            request's field that is wrong, and OpenAI's code of the error; either may be `None`.
    """

    name: str
    schema: Schema
    make: Callable[[str, int, str | None, str | None], Any]


DescribeModel = Callable[[str, Signature], Operation | None]
"""Returns the operation of the model with a name and a signature. `None`: it can't answer it."""


def fields(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    """Returns the JSON schema of an object with the given fields."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
    }


ERROR = ErrorForm(
    "Error", fields({"error": TEXT}), lambda message, _status, _field, _code: {"error": message}
)
"""The form of errors for routes that set no other."""

Parameters = Mapping[str, str]
"""The parts of a path that stand in braces in its template, by their names."""

Handler = Callable[[Service, HttpRequest], Awaitable[HttpResponse]]
"""A coroutine function that answers a route's requests. It must not block the event loop.

It reads the body by `body.read_body`, or by `answers.read_model_body` if it is a model's, awaits
`answers.dispatch(...)` if a model computes the answer, and calls slow functions on a thread. It
may raise any error: `answers.answer_error` answers it in the route's form.

`dispatch` answers 503 while the engine starts or stops, and sets the model in the metrics. A
handler without `dispatch` calls `service.check_ready(name)` itself, and sets `request.trace.model`
once it has found the model. A handler that parses the body before `dispatch` calls `check_ready`
first, so that an engine that is not ready answers 503 and nothing is parsed.
"""

DESCRIPTION_PATH = "/openapi.json"
"""The route that lists all routes."""

_PARAMETER = re.compile(r"{(\w+)}")
_NO_PARAMETERS: Parameters = {}
_MAX_COMPARED = 100
"""Characters of an unknown path that are compared with routes: more would be slow."""
_MAX_KEPT = 1024
_MAX_KEPT_CHARACTERS = 256
"""Clients choose the paths, so this bounds the memory that kept ones take."""


class Route(NamedTuple):
    """A method and a path template, and the handler that answers them.

    Args:
        method: `"POST"`, or `"GET"`, which answers `HEAD`, too.
        path: As in `"/v2/models/{name}/infer"`. A name in braces stands for one or more characters
            other than `/` and `:`.
        protocol: The label of the metrics. `"http"`: the route belongs to no protocol.
        call: The label of the metrics, as in `"predict"`.
        describe_model: Returns the `Operation` of one model. The document has the route once for
            each model then, with the model's name in the place of `{name}`.
        is_open: True if the route needs no token.
        is_refused_early: True if a request without room in its model's queue may be refused before
            its body is read: no deadline can stand there. The path has the names that `Engine.find`
            takes.
        is_management: True if the route needs a management token instead (`ModelControl`).
        is_local: True if the route is for clients on this machine (`ServerOptions.shared_memory`).
        is_cross_origin: True if pages of `ServerOptions.cors_origins` may call it.
        error_form: The form of all errors, also those raised before the handler is called, as for a
            wrong method. It must be the same for all routes of a path.
    """

    method: str
    path: str
    handler: Handler
    protocol: str = "http"
    call: str = ""
    operation: Operation | None = None
    describe_model: DescribeModel | None = None
    is_open: bool = False
    is_management: bool = False
    is_refused_early: bool = False
    is_local: bool = False
    is_cross_origin: bool = False
    error_form: ErrorForm = ERROR


class _Target(NamedTuple):
    """The routes of one path template by method, and the groups that capture its parameters."""

    routes: dict[str, Route]
    groups: tuple[tuple[str, int], ...]


class _Branch(NamedTuple):
    """Path templates with the same prefix, compiled into one regular expression."""

    prefix: str
    pattern: re.Pattern[str]
    targets: dict[int | None, _Target]


class Router:
    """Finds the route of a request.

    A path without parameters is looked up in a dict. Templates with parameters are grouped by the
    text before their first parameter, and each group is one regular expression. The results of the
    last paths are cached.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        by_template: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            by_template.setdefault(route.path, {})[route.method] = route
        self._static: dict[str, dict[str, Route]] = {}
        by_prefix: dict[str, dict[str, dict[str, Route]]] = {}
        for template, methods in by_template.items():
            if "GET" in methods:
                methods["HEAD"] = methods["GET"]
            prefix, brace, _ = template.partition("{")
            if brace:
                by_prefix.setdefault(prefix, {})[template] = methods
            else:
                self._static[template] = methods
        self._branches = [_compile(prefix, routes) for prefix, routes in by_prefix.items()]
        self._match_cached = lru_cache(_MAX_KEPT)(self._match_templates)

    def find(self, request: HttpRequest) -> tuple[Route, Parameters]:
        """Returns the route of a request, and the parameters in its path. Raises 404 or 405."""
        methods, parameters = self.match(request.path)
        route = methods.get(request.method)
        if route is not None:
            return route, parameters
        if not methods:
            raise HttpError(404, self._unknown_path_message(request.path))
        message = (
            f"{request.method!r:.20} is not allowed for {request.path!r:.200}. Use "
            f"{' or '.join(methods)}."
        )
        raise HttpError(405, message, (("allow", ", ".join(methods)),))

    def is_open(self, path: str) -> bool:
        """Returns true if a path has a route that needs none of the server's `tokens`."""
        routes = self.match(path)[0].values()
        return any(route.is_open or route.is_management for route in routes)

    def error_form(self, path: str) -> ErrorForm:
        """Returns the form of errors of a path. A path without a route has the default."""
        return next((route.error_form for route in self.match(path)[0].values()), ERROR)

    def _unknown_path_message(self, path: str) -> str:
        methods = {route.path: route.method for route in self.routes}
        word = _last_word(path)
        same_word = [template for template in methods if word and _last_word(template) == word]
        parents = {route.path for route in self.match(path.rpartition(":")[0])[0].values()}
        nearest = same_word and difflib.get_close_matches(
            path[:_MAX_COMPARED], same_word, n=1, cutoff=0.0
        )
        # A wrong call of a model, as in `/v1/models/digits:predcit`: all of its calls are named.
        nearest = nearest or [
            template for template in methods if template.rpartition(":")[0] in parents
        ]
        nearest = nearest or difflib.get_close_matches(path[:_MAX_COMPARED], methods, n=1)
        names = " or ".join(f"{methods[template]} {template}" for template in nearest)
        hint = f" Did you mean {names}?" if names else ""
        return (
            f"There is no path {path!r:.200} on this server.{hint} GET {DESCRIPTION_PATH} lists "
            "all paths."
        )

    def match(self, path: str) -> tuple[Mapping[str, Route], Parameters]:
        """Returns the routes of a path by method, none if it is unknown, and its parameters."""
        static = self._static.get(path)
        if static is not None:
            return static, _NO_PARAMETERS
        if len(path) > _MAX_KEPT_CHARACTERS:
            return self._match_templates(path)
        return self._match_cached(path)

    def _match_templates(self, path: str) -> tuple[Mapping[str, Route], Parameters]:
        for prefix, pattern, targets in self._branches:
            if path.startswith(prefix):
                match = pattern.fullmatch(path, len(prefix))
                if match is not None:
                    routes, groups = targets[match.lastindex]
                    return routes, {name: match[group] for name, group in groups}
        return {}, _NO_PARAMETERS


def _last_word(path: str) -> str:
    """Returns the end of a path, as `predict` of `/v1/models/digits:predict`."""
    return path.rpartition("/")[2].rpartition(":")[2]


def _compile(prefix: str, templates: Mapping[str, dict[str, Route]]) -> _Branch:
    """Compiles templates into one regular expression, with an alternative group for each.

    That group closes last, so `lastindex` tells which it was.
    """
    alternatives: list[str] = []
    targets: dict[int | None, _Target] = {}
    group = 1
    for template, routes in templates.items():
        names = _PARAMETER.findall(template)
        numbered = tuple((name, group + number) for number, name in enumerate(names, 1))
        targets[group] = _Target(routes, numbered)
        literals = _PARAMETER.split(template.removeprefix(prefix))[::2]
        alternatives.append(f"({'([^/:]+)'.join(map(re.escape, literals))})")
        group += 1 + len(names)
    return _Branch(prefix, re.compile("|".join(alternatives)), targets)
