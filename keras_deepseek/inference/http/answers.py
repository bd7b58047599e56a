"""HTTP responses that all protocols share: JSON and errors."""

import logging
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.errors import NOT_OF_MODEL, STATUSES, OverloadedError
from keras_deepseek.inference.http.message import HttpError, HttpResponse
from keras_deepseek.inference.http.operation import ERROR, ErrorForm
from keras_deepseek.inference.http.routing import Parameters
from keras_deepseek.inference.models.served_model import version_number
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.protocols.json_text import to_json

Headers = tuple[tuple[str, str], ...]

_logger = logging.getLogger(__name__)


def answer_json(content: Any, status: int = 200, headers: Headers = ()) -> HttpResponse:
    """Returns an HTTP response with a JSON body."""
    return HttpResponse(status, to_json(content), headers=headers)


def answer_error(error: Exception, form: ErrorForm = ERROR) -> HttpResponse:
    """Returns the answer for an error. A fault of the server is logged and hidden from clients."""
    message = str(error)
    headers: Headers = ()
    if isinstance(error, HttpError):
        status, headers = error.status, error.headers
    else:
        status = next((status for kind, status, _ in STATUSES if isinstance(error, kind)), 0)
        if isinstance(error, OverloadedError):
            headers = (("retry-after", str(error.retry_after)),)
    if not status:
        _logger.error("The server failed.", exc_info=error)
        status, message = 500, "The server failed; see its log."
    return answer_json(form.make(message, status), status, headers)


def outputs_of(model_name: str, finished: Request, trace: RequestTrace) -> dict[str, Array]:
    """Returns the outputs of a finished request, or raises the error for the client.

    If the model failed that is an `HttpError` 500, and the log alone has the reason.
    """
    if finished.outputs is not None:
        return finished.outputs
    error = finished.error
    assert error is not None
    if isinstance(error, NOT_OF_MODEL):
        finished.error = None
        try:
            raise error
        finally:
            del error  # It was a reference cycle, which holds the inputs.
    _logger.error("The model %r failed.%s", model_name, trace.log_suffix, exc_info=error)
    raise HttpError(500, f"The model failed with {type(error).__name__}; see the server's log.")


def read_version(parameters: Parameters) -> int | None:
    """Returns the version that a path names, or `None`. Raises 404 if it is no number."""
    version = parameters.get("version")
    if version is None:
        return None
    number = version_number(version)
    if number is None:
        raise HttpError(404, f"The path has the version {version!r}. Expected a number.")
    return number
