"""What the gRPC protocols share: how a request reaches the model, and what an error is answered.

The calls themselves are in `tf_serving_rpc`, `model_service_rpc`, `open_inference_rpc`,
`open_inference_stream` and `health_rpc`; `grpc_application` hangs them up.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.errors import OF_WAITING, STATUSES, DeadlineExceededError
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.monitoring.request_trace import RequestTrace, current_trace

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_server import GrpcServer

Inputs = dict[str, Array]
Bind = Callable[[Signature], Inputs]
_LONGEST_TEXT = 1000
"""Characters: a status travels in a header, and clients refuse headers of more than 8 KiB."""

_FOREVER = 10.0**9
"""Seconds: gRPC may tell of no deadline as of one that is so far away."""

_logger = logging.getLogger(__name__)


class StatusError(Exception):
    """A call that is refused.

    Args:
        status: string. A gRPC status, as in `"NOT_FOUND"`.
        message: string. For the client.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Refusal(NamedTuple):
    """What a client is told of an error.

    Args:
        status: string. A gRPC status.
        message: string.
        metadata: tuple of (name, value) pairs, sent behind the answer.
    """

    status: str
    message: str
    metadata: tuple[tuple[str, str], ...] = ()


def refusal_of(error: Exception) -> Refusal:
    """Returns what a client is told of an error.

    Args:
        error: Exception. One that is not the client's is logged and not shown.
    """
    if isinstance(error, StatusError):
        return Refusal(error.status, _shorten(str(error)))
    for kind, _, status in STATUSES:
        if isinstance(error, kind):
            again = getattr(error, "retry_after", None)
            # Clients with a policy of retries wait so long.
            metadata = () if again is None else (("grpc-retry-pushback-ms", str(1000 * again)),)
            return Refusal(status, _shorten(str(error)), metadata)
    _logger.error("The server failed.", exc_info=error)
    return Refusal("INTERNAL", "The server failed; see its log.")


def time_left(context: Any) -> float | None:
    """Returns the seconds that a client still waits, or `None` where it set no deadline.

    Args:
        context: `grpc.aio.ServicerContext`.
    """
    left: float | None = context.time_remaining()
    return None if left is None or left > _FOREVER else left


def dispatch(
    server: "GrpcServer",
    bind: Bind,
    name: str,
    version: int | None,
    label: str,
    timeout: float | None,
    priority: int = 0,
) -> tuple["asyncio.Future[Inputs]", ModelVersion]:
    """Puts a request in a model's queue.

    Args:
        server: `GrpcServer`.
        bind: function from the `Signature` of the version that will answer to its inputs.
        name: string. The model.
        version: integer, or `None` for the newest.
        label: string. In place of a version; empty for none.
        timeout: float. Seconds that the client still waits, or `None` for no limit.
        priority: integer. Higher ones are run first. Defaults to `0`.

    Returns:
        A future for `outputs_of`, and the version. Cancelling the future takes the request out.

    Raises:
        KerasDeepSeekError: The request is refused.
    """
    server.check_ready(name)
    if timeout is not None and timeout <= 0:
        raise DeadlineExceededError("The request's deadline passed before it was read.")
    return server.engine.dispatch_async(
        bind,
        current_trace.get(),
        model=name,
        version=version,
        label=label,
        timeout=timeout,
        priority=priority,
    )


async def outputs_of(
    model_name: str, future: "asyncio.Future[Inputs]", trace: RequestTrace | None
) -> Inputs:
    """Returns a model's outputs when they are there.

    Args:
        model_name: string.
        future: `asyncio.Future` of `dispatch`. It is cancelled where the call is.
        trace: `RequestTrace` or `None`. Its id is told in the log.

    Raises:
        KerasDeepSeekError: The request was refused, or is late.
        StatusError: INTERNAL: the model failed. Why stands in the log alone.
    """
    try:
        return await future
    except OF_WAITING:
        raise
    except Exception as error:
        _logger.exception("The model %r failed.%s", model_name, trace.log_suffix if trace else "")
        message = f"The model failed with {type(error).__name__}; see the server's log."
        raise StatusError("INTERNAL", message) from error


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."
