"""What each HTTP path answers: a table of routes around the pure functions of `protocols`.

All of it runs on the server's event loop, and nothing waits there for the model: `:predict` is
answered by a function of the future that the engine gave.
"""

import asyncio
import functools
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference.errors import (
    ClosedError,
    DeadlineExceededError,
    OverloadedError,
)
from keras_deepseek.inference.http_message import HttpError, HttpRequest, HttpResponse, Pending
from keras_deepseek.inference.protocols import tf_serving

if TYPE_CHECKING:
    from keras_deepseek.inference.engine import ServingEngine
    from keras_deepseek.inference.http import HttpServer

_logger = logging.getLogger(__name__)

_Match = re.Match[str]
_Handler = Callable[["TfServingApplication", HttpRequest, _Match], HttpResponse | Pending]


class TfServingApplication:
    """TF Serving's REST calls for the engine of one server, and `/healthz`.

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
        for pattern, method, handler in _ROUTES:
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            if request.method == method or (request.method == "HEAD" and method == "GET"):
                return handler(self, request, match)
            allowed = "GET, HEAD" if method == "GET" else method
            raise HttpError(405, "Method Not Allowed", (("allow", allowed),))
        raise HttpError(404, _malformed(request))

    def answer_error(self, error: Exception) -> HttpResponse:
        """Returns the answer that tells a client of an error.

        Args:
            error: Exception. One that is not the client's is logged and not shown.
        """
        if isinstance(error, HttpError):
            return _answer_error(error.status, str(error), error.headers)
        if isinstance(error, InvalidInputError):
            return _answer_error(400, str(error))
        if isinstance(error, OverloadedError):
            return _answer_error(429, str(error), (("retry-after", str(error.retry_after)),))
        if isinstance(error, ClosedError):
            return _answer_error(503, str(error))
        if isinstance(error, DeadlineExceededError):
            return _answer_error(504, str(error))
        _logger.error("The server failed.", exc_info=error)
        return _answer_error(500, "The server failed; see its log.")

    def health(self, _request: HttpRequest, _match: _Match) -> HttpResponse:
        """Answers 200 when requests are answered, else 503."""
        if not self._server.ready:
            return _answer_error(503, "Not ready.")
        return _answer_json({"status": "ready"})

    def status(self, request: HttpRequest, match: _Match) -> HttpResponse:
        """Answers as TF Serving's GetModelStatus does."""
        self._find_engine(request, match)
        return _answer_json(tf_serving.format_status(self._server.ready))

    def metadata(self, request: HttpRequest, match: _Match) -> HttpResponse:
        """Answers as TF Serving's GetModelMetadata does."""
        engine = self._find_engine(request, match)
        return _answer_json(tf_serving.format_metadata(engine.name, engine.signature))

    def predict(self, request: HttpRequest, match: _Match) -> Pending:
        """Answers with the model's outputs in the form, row or column, that the request has."""
        engine = self._find_engine(request, match)
        if not self._server.ready:
            raise ClosedError(
                f"The model {engine.name!r} is not ready: it is starting or stopping."
            )
        call = tf_serving.parse_predict(request.body, engine.signature)
        answer = engine.submit_async(call.inputs)
        return Pending(answer, functools.partial(_answer_outputs, engine.name, call.is_row_form))

    def _find_engine(self, request: HttpRequest, match: _Match) -> "ServingEngine":
        """Returns the engine that the path names, or answers 404."""
        engine = self._server.engine
        name, version = match["name"], match["version"]
        if version is not None and not version.isdecimal():
            raise HttpError(404, _malformed(request))
        if name != engine.name or version not in (None, tf_serving.VERSION):
            raise HttpError(404, tf_serving.not_found_message(name, version))
        return engine


_MODEL = r"/v1/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?"

_ROUTES: tuple[tuple[re.Pattern[str], str, _Handler], ...] = (
    # `:predict` goes first: a name takes everything up to the next slash.
    (re.compile(_MODEL + ":predict"), "POST", TfServingApplication.predict),
    (re.compile(_MODEL + "/metadata"), "GET", TfServingApplication.metadata),
    (re.compile(_MODEL), "GET", TfServingApplication.status),
    (re.compile("/healthz"), "GET", TfServingApplication.health),
)


def _answer_outputs(
    model_name: str, is_row_form: bool, future: "asyncio.Future[dict[str, Array]]"
) -> HttpResponse:
    """Answers with the outputs. What went wrong inside the model is logged; the answer is 500."""
    error = future.exception()
    if error is None:
        return _answer_json(tf_serving.format_outputs(future.result(), is_row_form))
    if isinstance(error, ClosedError | OverloadedError | DeadlineExceededError):
        raise error
    _logger.error("The model %r failed.", model_name, exc_info=error)
    raise HttpError(500, f"The model failed with {type(error).__name__}; see the server's log.")


def _answer_json(
    content: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
) -> HttpResponse:
    return HttpResponse(status, tf_serving.to_json(content), headers=headers)


def _answer_error(
    status: int, message: str, headers: tuple[tuple[str, str], ...] = ()
) -> HttpResponse:
    return _answer_json({"error": message}, status, headers)


def _malformed(request: HttpRequest) -> str:
    return f"Malformed request: {request.method} {request.path}"
