"""The application behind an HTTP server: the routes of all protocols, and the notes of requests.

All of it runs on the server's event loop, and nothing there waits for the model: a route that needs
the model returns a `Pending`.
"""

from typing import TYPE_CHECKING

from keras_deepseek.inference.http import metrics, open_inference_rest, pages, tf_serving_rest
from keras_deepseek.inference.http.answers import answer_error, answer_json
from keras_deepseek.inference.http.message import (
    HUNG_UP,
    HttpError,
    HttpRequest,
    HttpResponse,
    Pending,
)
from keras_deepseek.inference.http.openapi import describe_server
from keras_deepseek.inference.http.operation import OBJECT, Operation
from keras_deepseek.inference.http.routing import DESCRIPTION_PATH, Parameters, Route, Router
from keras_deepseek.inference.http.span_names import name_http
from keras_deepseek.inference.monitoring.access_log import choose_request_id
from keras_deepseek.inference.monitoring.request_trace import RequestTrace

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer


def health(server: "HttpServer", _request: HttpRequest, _parameters: Parameters) -> HttpResponse:
    """Answers 200 if the server is ready, else 503."""
    if not server.ready:
        raise HttpError(503, "The server is not ready: it is starting or stopping.")
    return answer_json({"status": "ready"})


_HEALTH = Operation("Readiness of the server", OBJECT)

ROUTES = (
    *tf_serving_rest.ROUTES,
    *open_inference_rest.ROUTES,
    Route("GET", "/healthz", health, call="health", operation=_HEALTH, is_open=True),
    *metrics.ROUTES,
    *pages.ROUTES,
)
"""The routes of a server. A new protocol adds its own here."""


_CHALLENGE = 'Bearer realm="keras_deepseek"'


class HttpApplication:
    """Answers the requests of one server. It adds the route `/openapi.json` to the others."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        operation = Operation("This description", OBJECT)
        describe = Route(
            "GET", DESCRIPTION_PATH, self._describe, call="openapi", operation=operation
        )
        self.router = Router([*ROUTES, describe])

    def admit(self, request: HttpRequest) -> None:
        """Refuses a request without a valid token by 401, if the server asks for tokens."""
        tokens = self._server.tokens
        if tokens is None or tokens.allows(request.headers.get("authorization")):
            return
        if self.router.is_open(request.path):
            return
        if "authorization" not in request.headers:
            message = "A token is required. Send the header Authorization: Bearer TOKEN."
            raise HttpError(401, message, (("www-authenticate", _CHALLENGE),))
        challenge = f'{_CHALLENGE}, error="invalid_token"'
        message = "The token is not valid. Send a valid one as Authorization: Bearer TOKEN."
        raise HttpError(401, message, (("www-authenticate", challenge),))

    def handle(self, request: HttpRequest) -> HttpResponse | Pending:
        """Returns the response of the route that matches a request.

        Raises `HttpError` 404 for an unknown path, and 405 for a wrong method.
        """
        if self._server.access_log is not None:  # Lines of the log name it from here on.
            request.trace.request_id = choose_request_id(request.headers.get("x-request-id"))
        route, parameters = self.router.find(request)
        request.route = route.path
        request.trace.protocol, request.trace.call = route.protocol, route.call
        return route.handler(self._server, request, parameters)

    def answer_error(self, error: Exception, path: str) -> HttpResponse:
        """Returns the answer for an error, in the form of the path's route."""
        return answer_error(error, self.router.error_form(path))

    def end(self, request: HttpRequest | None, response: HttpResponse | None) -> None:
        """Adds an answered request to the metrics, the traces and the access log.

        `request` is `None` if the bytes were no HTTP request, `response` if the client hung up
        before.
        """
        trace = RequestTrace("http") if request is None else request.trace
        status = HUNG_UP if response is None else response.status
        seconds = self._server.engine.monitor.end(trace, status)
        if self._server.traces is not None:
            names = name_http(self._server, request, status, request.route if request else "")
            self._server.traces.add(trace, seconds, names, request.headers if request else {})
        access_log = self._server.access_log
        if access_log is None:
            return
        headers = {} if request is None else request.headers
        if not trace.request_id:  # It was refused before it was handled.
            trace.request_id = choose_request_id(headers.get("x-request-id"))
        if response is not None:
            response.headers = (*response.headers, ("x-request-id", trace.request_id))
        access_log.write(
            trace,
            method="" if request is None else request.method,
            path="" if request is None else request.path,
            status=status,
            size=0 if response is None else len(response.body),
            seconds=seconds,
            client="" if request is None else request.client,
        )

    def _describe(
        self, server: "HttpServer", _request: HttpRequest, _parameters: Parameters
    ) -> HttpResponse:
        """Answers with the OpenAPI document of the routes, and of the models as they are now."""
        asks_for_tokens = server.tokens is not None
        document = describe_server(
            server.engine, self.router.routes, asks_for_tokens=asks_for_tokens
        )
        return answer_json(document)
