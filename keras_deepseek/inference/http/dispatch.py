"""The calls of models, for the handlers of all protocols."""

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Unpack, cast

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.errors import ModelNotFoundError
from keras_deepseek.inference.http.answers import outputs_of
from keras_deepseek.inference.http.body import THREAD_BYTES, compute, read_body
from keras_deepseek.inference.http.message import ClientDisconnectError, HttpError, HttpRequest
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.request_options import RequestOptions

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer

Inputs = dict[str, Array]

_SLICE = 2**18
_SPARE, _SLACK = 4, 2**16
"""The values that a request may have beyond the model's: in names, parameters, unused features."""
_VALUE_BYTES = 16
"""The bytes for each of these values: `_SPARE` times as many for each that the model needs."""


async def dispatch(
    server: "HttpServer",
    request: HttpRequest,
    name: str,
    bind: Callable[[Signature], Inputs],
    *,
    text: bytes = b"",
    not_found: Callable[[ModelNotFoundError], HttpError] | None = None,
    **options: Unpack[RequestOptions],
) -> Inputs:
    """Queues a request for the model `name`, and returns the outputs when the model has run.

    The request leaves the queue if the client hangs up. `bind` is called with the signature of the
    version that answers, for its inputs: on a thread if it parses a large `text` of JSON.
    `not_found` makes another error from a `ModelNotFoundError`.
    """
    server.check_ready(name)
    options["model"] = name
    if request.exchange is not None and request.exchange.is_disconnected:
        raise ClientDisconnectError
    answered: asyncio.Future[Request | None] = asyncio.get_running_loop().create_future()

    def settle(finished: Request) -> None:
        if not answered.done():
            answered.set_result(finished)

    try:
        if len(text) > THREAD_BYTES:
            model_version = server.engine.find(
                name, options.get("version"), options.get("label", "")
            )
            await compute(len(text), check_values, text, model_version)
            bind = _bound(
                model_version.signature,
                await compute(len(text), bind, model_version.signature),
                bind,
            )
        cancel, _ = server.engine.dispatch(bind, settle, request.trace, **options)
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


async def read_model_body(
    server: "HttpServer", request: HttpRequest, version: ModelVersion
) -> bytes:
    """Counts a request as arrived at its model, and returns its body.

    Raises the errors of `read_body`. The limit is the size of the largest request that the model
    takes, if that is below the server's.
    """
    trace = request.trace
    trace.model, trace.version = version.name, str(version.number)
    server.engine.monitor.arrive(trace)
    most = _most_values(version)
    limit = server.max_body_bytes
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
    """Returns more values than the largest request of a model has.

    A model with strings, or with a free axis beside the first, has no largest request: `None`.
    """
    row = 0
    for spec in version.signature.inputs:
        sizes = spec.shape[1:]
        if spec.dtype == "object" or None in sizes:
            return None
        row += math.prod(cast("tuple[int, ...]", sizes))
    return _SLACK + _SPARE * row * version.max_rows


def _bound(
    signature: Signature, inputs: Inputs, bind: Callable[[Signature], Inputs]
) -> Callable[[Signature], Inputs]:
    """Returns a function like `bind` that knows the inputs for one signature."""
    return lambda other_signature: inputs if other_signature == signature else bind(other_signature)
