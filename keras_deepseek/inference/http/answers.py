"""The functions that the handlers of all routes share: calling a model, and making the answers."""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any, Unpack, cast

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.inference.arguments import RequestOptions
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.errors import (
    NOT_OF_MODEL,
    STATUSES,
    ModelNotFoundError,
    OverloadedError,
)
from keras_deepseek.inference.http.body import THREAD_BYTES, compute, read_body
from keras_deepseek.inference.http.message import (
    ClientDisconnectError,
    HttpError,
    HttpRequest,
    HttpResponse,
)
from keras_deepseek.inference.http.routing import ERROR, ErrorForm, Parameters
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.open_version import as_tensor_version
from keras_deepseek.inference.models.served_model import version_number
from keras_deepseek.inference.models.version import Version
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.openai.openai_errors import field_of
from keras_deepseek.inference.protocols.json_text import to_json
from keras_deepseek.inference.server.service import Service

Headers = tuple[tuple[str, str], ...]

Inputs = dict[str, Array]

_SLICE = 2**18
_SPARE, _SLACK = 4, 2**16
"""A request may have `_SPARE` times the values that the model needs, and `_SLACK` more: names,
parameters and unused features are values, too."""
_VALUE_BYTES = 16
"""The bytes that a body may have for each of these values."""

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
    code = error.code if isinstance(error, InvalidFieldError) else None
    content = form.make(message, status, field_of(error), code)
    return answer_json(content, status, headers)


def outputs_of(model_name: str, finished: Request, trace: RequestTrace) -> dict[str, Array]:
    """Returns the outputs of a finished request, or raises the error for the client.

    If the model failed, the error is an `HttpError` 500, and the log alone has the reason.
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


async def dispatch(
    service: Service,
    request: HttpRequest,
    name: str,
    bind: Callable[[Signature], Inputs],
    *,
    text: bytes = b"",
    not_found: Callable[[ModelNotFoundError], HttpError] | None = None,
    **options: Unpack[RequestOptions],
) -> Inputs:
    """Queues a request for the model `name`, and returns the outputs when the model has run.

    The request leaves the queue if the client hangs up.

    Args:
        service: The server.
        request: The request.
        name: The name of the model.
        bind: Function that returns the inputs for the signature of the version that answers.
        text: The JSON that `bind` parses, if there is any. A large one is parsed on a thread.
        not_found: Function that converts a `ModelNotFoundError` to the error for the client.
            Defaults to `None`: the `ModelNotFoundError`.
        **options: The options of the request, such as `version` and `timeout`.
    """
    service.check_ready(name)
    options["model"] = name
    if request.exchange is not None and request.exchange.is_disconnected:
        raise ClientDisconnectError
    answered: asyncio.Future[Request | None] = asyncio.get_running_loop().create_future()

    def settle(finished: Request) -> None:
        if not answered.done():
            answered.set_result(finished)

    try:
        if len(text) > THREAD_BYTES:
            # `dispatch` calls `bind` on the event loop, so the inputs are made before, on a thread.
            model_version = as_tensor_version(
                service.engine.find(name, options.get("version"), options.get("label", ""))
            )
            await compute(len(text), check_values, text, model_version)
            signature = model_version.signature
            inputs = await compute(len(text), model_version.bind, bind)
            bind = _bound(signature, inputs, bind)
        cancel, _ = service.engine.dispatch(bind, settle, request.trace, **options)
    except ModelNotFoundError as error:
        if not_found is None:
            raise
        raise not_found(error) from error

    def give_up() -> None:
        cancel()
        if not answered.done():
            answered.set_result(None)  # An exception there would be a reference cycle.

    request.call_on_disconnect(give_up)
    try:
        finished = await answered
    except asyncio.CancelledError:
        cancel()
        raise
    if finished is None:
        raise ClientDisconnectError
    return outputs_of(name, finished, request.trace)


async def read_model_body(service: Service, request: HttpRequest, served: Version) -> bytes:
    """Counts a request as arrived at its model, and returns its body.

    Raises the errors of `read_body`, and `InvalidInputError` for a language model. The limit is the
    size of the largest request that the model takes, if that is below the server's.
    """
    version = as_tensor_version(served)
    trace = request.trace
    trace.model, trace.version = version.name, str(version.number)
    service.engine.monitor.arrive(trace)
    most = _most_values(version)
    limit = service.options.max_body_bytes
    return await read_body(request, limit if most is None else min(limit, _VALUE_BYTES * most))


def check_values(text: bytes | memoryview, version: ModelVersion) -> None:
    """Refuses JSON with far more values than a model's largest request, before it is parsed."""
    most = _most_values(version)
    if most is None:
        return
    for start in range(0, len(text), _SLICE):  # In slices, between which others may run.
        most -= bytes(text[start : start + _SLICE]).count(b",")
        if most < 0:
            raise HttpError(
                413,
                f"The body has more values than {version.max_rows} rows, the most of one request "
                f"to {version.name!r}. Send fewer rows in one request.",
            )


def _most_values(version: ModelVersion) -> int | None:
    """Returns the number of values that a request to a model may have at most.

    Returns `None`, for any number, if an input is of strings or has a free axis beside the first.
    """
    row_values = 0
    for spec in version.signature.inputs:
        sizes = spec.shape[1:]
        if spec.dtype == "object" or None in sizes:
            return None
        row_values += math.prod(cast("tuple[int, ...]", sizes))
    return _SLACK + _SPARE * row_values * version.max_rows


def _bound(
    signature: Signature, inputs: Inputs, bind: Callable[[Signature], Inputs]
) -> Callable[[Signature], Inputs]:
    """Returns a function that returns `inputs` for `signature`, and calls `bind` for another one.

    If a version was loaded in the meantime, the one that answers may have another signature.
    """
    return lambda other_signature: inputs if other_signature == signature else bind(other_signature)
