"""What each HTTP path answers: the routes of all protocols, and `/healthz`.

All of it runs on the server's event loop, and nothing waits there for the model: what needs it is
answered by a function of the future that the engine gave.
"""

import re
from typing import TYPE_CHECKING

from keras_deepseek.inference.http import metrics, open_inference_rest, pages, tf_serving_rest
from keras_deepseek.inference.http.answers import (
    Route,
    answer_error,
    answer_json,
    malformed,
    template_of,
)
from keras_deepseek.inference.http.message import (
    HUNG_UP,
    HttpError,
    HttpRequest,
    HttpResponse,
    Pending,
)
from keras_deepseek.inference.http.span_names import name_http
from keras_deepseek.inference.monitoring.access_log import choose_request_id
from keras_deepseek.inference.monitoring.request_trace import RequestTrace

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer


def health(server: "HttpServer", _request: HttpRequest, _match: re.Match[str]) -> HttpResponse:
    """Answers 200 when requests are answered, else 503."""
    if not server.ready:
        raise HttpError(503, "Not ready.")
    return answer_json({"status": "ready"})


ROUTES = (
    *tf_serving_rest.ROUTES,
    *open_inference_rest.ROUTES,
    Route("GET", re.compile("/healthz"), health, call="health", is_open=True),
    *metrics.ROUTES,
    *pages.ROUTES,
)


_CHALLENGE = 'Bearer realm="keras_deepseek"'


class HttpApplication:
    """Answers requests for the engine of one server.

    Args:
        server: `HttpServer`. Its engine and its readiness are read at each request.
    """

    def __init__(self, server: "HttpServer") -> None:
        self._server = server

    def admit(self, request: HttpRequest) -> None:
        """Refuses a request without a token, where the server asks for one.

        Args:
            request: `HttpRequest`.

        Raises:
            HttpError: 401: it shows no token, or one that is none of the server's.
        """
        tokens = self._server.tokens
        if tokens is None or tokens.allows(request.headers.get("authorization")):
            return
        if any(route.is_open and route.pattern.fullmatch(request.path) for route in ROUTES):
            return
        if "authorization" not in request.headers:
            message = "A token is asked for: send the header Authorization: Bearer TOKEN."
            raise HttpError(401, message, (("www-authenticate", _CHALLENGE),))
        challenge = f'{_CHALLENGE}, error="invalid_token"'
        raise HttpError(401, "The token is not valid.", (("www-authenticate", challenge),))

    def handle(self, request: HttpRequest) -> HttpResponse | Pending:
        """Returns the answer of the route that fits.

        Args:
            request: `HttpRequest`.

        Raises:
            HttpError: 404 where no route fits the path, 405 where one fits with another method.
            KerasDeepSeekError: The route refuses the request.
        """
        if self._server.access_log is not None:  # Lines of the log name it from here on.
            request.trace.request_id = choose_request_id(request.headers.get("x-request-id"))
        allowed = []
        for route in ROUTES:
            match = route.pattern.fullmatch(request.path)
            if match is None:
                continue
            if request.method == route.method or (
                request.method == "HEAD" and route.method == "GET"
            ):
                request.trace.protocol, request.trace.call = route.protocol, route.call
                return route.handler(self._server, request, match)
            allowed.append("GET, HEAD" if route.method == "GET" else route.method)
        if allowed:
            raise HttpError(405, "Method Not Allowed", (("allow", ", ".join(allowed)),))
        raise malformed(request)

    def answer_error(self, error: Exception) -> HttpResponse:
        """Returns the answer that tells a client of an error.

        Args:
            error: Exception.
        """
        return answer_error(error)

    def end(self, request: HttpRequest | None, response: HttpResponse | None) -> None:
        """Counts a request that is answered, and logs it where that is asked for.

        Args:
            request: `HttpRequest`, or `None` where what came was none.
            response: `HttpResponse`, or `None` where the client hung up before it was there.
        """
        trace = RequestTrace("http") if request is None else request.trace
        status = HUNG_UP if response is None else response.status
        seconds = self._server.engine.monitor.end(trace, status)
        if self._server.traces is not None:
            names = name_http(self._server, request, status, _form_of(request))
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


def _form_of(request: HttpRequest | None) -> str:
    """Returns the form of a path with the names of its parts, or nothing where it leads nowhere."""
    if request is None or not request.trace.call:
        return ""
    found = (
        route.pattern.fullmatch(request.path)
        for route in ROUTES
        if (route.protocol, route.call) == (request.trace.protocol, request.trace.call)
    )
    return next((template_of(match) for match in found if match is not None), "")
