"""Functions that all gRPC services share: running the model, and turning errors into statuses."""

import asyncio
import logging
from collections.abc import Callable
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.errors import NOT_OF_MODEL, STATUSES, DeadlineExceededError
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.monitoring.request_trace import RequestTrace, current_trace

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_server import GrpcServer

Inputs = dict[str, Array]
Bind = Callable[[Signature], Inputs]
_LONGEST_TEXT = 1000
"""Characters of a status message. It travels in a header, and clients refuse headers over 8 KiB."""

_FOREVER = 10.0**9
"""Seconds. gRPC may report a missing deadline as one that is farther away than this."""

_logger = logging.getLogger(__name__)


class StatusError(Exception):
    """An error with the gRPC status that the client receives, as in `"NOT_FOUND"`."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Refusal(NamedTuple):
    """The gRPC status of a failed call, with its message and its trailing metadata."""

    status: str
    message: str
    metadata: tuple[tuple[str, str], ...] = ()


def refusal_of(error: Exception) -> Refusal:
    """Returns the gRPC status for an error, which is handled then.

    A fault of the server is logged and not shown.
    """
    refusal = _find_refusal(error)
    # The frames have large inputs, and futures that have the error: a reference cycle.
    clear_frames(error.__traceback__)
    return refusal


def _find_refusal(error: Exception) -> Refusal:
    if isinstance(error, StatusError):
        return Refusal(error.status, _shorten(str(error)))
    for kind, _, status in STATUSES:
        if isinstance(error, kind):
            again = getattr(error, "retry_after", None)
            # Clients with a retry policy wait for so long.
            metadata = () if again is None else (("grpc-retry-pushback-ms", str(1000 * again)),)
            return Refusal(status, _shorten(str(error)), metadata)
    _logger.error("The server failed.", exc_info=error)
    return Refusal("INTERNAL", "The server failed; see its log.")


def time_left(context: Any) -> float | None:
    """Returns the seconds until a gRPC call's deadline, or `None` if the client set none."""
    seconds: float | None = context.time_remaining()
    return None if seconds is None or seconds > _FOREVER else seconds


def dispatch(
    server: "GrpcServer",
    bind: Bind,
    name: str,
    version: int | None,
    label: str,
    timeout: float | None,
    priority: int = 0,
) -> tuple["asyncio.Future[Inputs]", ModelVersion]:
    """Puts a request into a model's queue. Returns a future for `outputs_of`, and the version.

    `bind` returns the inputs for the signature of the version that answers. `version=None` is the
    newest, an empty `label` none, and `timeout` the seconds until the client's deadline. Cancelling
    the future takes the request out of the queue.
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
    """Waits for a model's outputs and returns them. The `future` is cancelled when the call is.

    If the model failed, the client gets INTERNAL, and only the log has the reason, by request id.
    """
    try:
        return await future
    except NOT_OF_MODEL:
        raise
    except Exception as error:
        _logger.exception("The model %r failed.%s", model_name, trace.log_suffix if trace else "")
        message = f"The model failed with {type(error).__name__}; see the server's log."
        raise StatusError("INTERNAL", message) from error


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."
