"""Answers that the HTTP protocols share: JSON, errors, and the routes that lead to them."""

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.errors import OF_WAITING, STATUSES
from keras_deepseek.inference.http.message import HttpError, HttpRequest, HttpResponse, Pending
from keras_deepseek.inference.models.states import version_number
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.protocols.json_text import to_json

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer

Handler = Callable[["HttpServer", HttpRequest, re.Match[str]], HttpResponse | Pending]
Headers = tuple[tuple[str, str], ...]

_logger = logging.getLogger(__name__)


class Route(NamedTuple):
    """A method and a form of path, and what answers them.

    Args:
        method: string. `"GET"`, which `HEAD` may stand for, or `"POST"`.
        pattern: compiled regular expression of the whole path.
        handler: function of the server, the request and the pattern's match.
        protocol: string. For the metrics. Defaults to `"http"`: none of the models' protocols.
        call: string. Likewise, as in `"predict"`. Defaults to `""`.
        is_open: boolean. Whether it is answered without a token. Defaults to `False`.
    """

    method: str
    pattern: re.Pattern[str]
    handler: Handler
    protocol: str = "http"
    call: str = ""
    is_open: bool = False


def answer_json(content: Any, status: int = 200, headers: Headers = ()) -> HttpResponse:
    """Returns an answer of JSON."""
    return HttpResponse(status, to_json(content), headers=headers)


def answer_error(error: Exception) -> HttpResponse:
    """Returns the answer that tells a client of an error.

    Args:
        error: Exception. One that is not the client's is logged and not shown.
    """
    if isinstance(error, HttpError):
        return answer_json({"error": str(error)}, error.status, error.headers)
    for kind, status, _ in STATUSES:
        if isinstance(error, kind):
            again = getattr(error, "retry_after", None)
            headers = () if again is None else (("retry-after", str(again)),)
            return answer_json({"error": str(error)}, status, headers)
    _logger.error("The server failed.", exc_info=error)
    return answer_json({"error": "The server failed; see its log."}, 500)


def outputs_of(model_name: str, finished: Request, trace: RequestTrace) -> dict[str, Array]:
    """Returns a model's outputs, or raises what a client is told in their place.

    Args:
        model_name: string.
        finished: `Request`.
        trace: `RequestTrace`. Its id is told in the log.

    Raises:
        KerasDeepSeekError: The request was refused, or is late.
        HttpError: 500: the model failed. Why stands in the log alone.
    """
    if finished.outputs is not None:
        return finished.outputs
    error = finished.error
    assert error is not None
    if isinstance(error, OF_WAITING):
        raise error
    _logger.error("The model %r failed.%s", model_name, trace.log_suffix, exc_info=error)
    raise HttpError(500, f"The model failed with {type(error).__name__}; see the server's log.")


def read_version(request: HttpRequest, match: re.Match[str]) -> int | None:
    """Returns the version that a path names, or `None`.

    Args:
        request: `HttpRequest`.
        match: The path's match of a pattern with a group `version`.

    Raises:
        HttpError: 404: it is no number.
    """
    version = match["version"]
    if version is None:
        return None
    number = version_number(version)
    if number is None:
        raise malformed(request)
    return number


def malformed(request: HttpRequest) -> HttpError:
    """Returns the error of a path that leads nowhere, in TF Serving's words."""
    return HttpError(404, f"Malformed request: {request.method} {request.path}")


def template_of(match: re.Match[str]) -> str:
    """Returns a path with the names of its parts in the place of what they are.

    Args:
        match: The path's match of a pattern.

    Example:

    >>> template_of(re.fullmatch("/v2/models/(?P<name>[^/]+)/ready", "/v2/models/digits/ready"))
    '/v2/models/{name}/ready'
    """
    text, end = "", 0
    for name in match.re.groupindex:  # They stand in the order of the pattern.
        if match[name] is not None:
            text += f"{match.string[end : match.start(name)]}{{{name}}}"
            end = match.end(name)
    return text + match.string[end:]
