"""What each HTTP path answers: the routes of all protocols, and `/healthz`.

All of it runs on the server's event loop, and nothing waits there for the model: what needs it is
answered by a function of the future that the engine gave.
"""

import re
from typing import TYPE_CHECKING

from keras_deepseek.inference import open_inference_rest, tf_serving_rest
from keras_deepseek.inference.http_answers import Route, answer_error, answer_json, malformed
from keras_deepseek.inference.http_message import HttpError, HttpRequest, HttpResponse, Pending

if TYPE_CHECKING:
    from keras_deepseek.inference.http import HttpServer


def health(server: "HttpServer", _request: HttpRequest, _match: re.Match[str]) -> HttpResponse:
    """Answers 200 when requests are answered, else 503."""
    if not server.ready:
        raise HttpError(503, "Not ready.")
    return answer_json({"status": "ready"})


ROUTES = (
    *tf_serving_rest.ROUTES,
    *open_inference_rest.ROUTES,
    Route("GET", re.compile("/healthz"), health),
)


class HttpApplication:
    """Answers requests for the engine of one server.

    Args:
        server: `HttpServer`. Its engine and its readiness are read at each request.
    """

    def __init__(self, server: "HttpServer") -> None:
        self._server = server

    def handle(self, request: HttpRequest) -> HttpResponse | Pending:
        """Returns the answer of the route that fits.

        Args:
            request: `HttpRequest`.

        Raises:
            HttpError: 404 where no route fits the path, 405 where one fits with another method.
            KerasDeepSeekError: The route refuses the request.
        """
        allowed = []
        for method, pattern, handler in ROUTES:
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            if request.method == method or (request.method == "HEAD" and method == "GET"):
                return handler(self._server, request, match)
            allowed.append("GET, HEAD" if method == "GET" else method)
        if allowed:
            raise HttpError(405, "Method Not Allowed", (("allow", ", ".join(allowed)),))
        raise malformed(request)

    def answer_error(self, error: Exception) -> HttpResponse:
        """Returns the answer that tells a client of an error.

        Args:
            error: Exception.
        """
        return answer_error(error)
