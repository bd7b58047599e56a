"""The parts that all gRPC services share: their type, calling a model, statuses, and records."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import Any, NamedTuple, Unpack
from urllib.parse import unquote

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.arguments import RequestOptions
from keras_deepseek.inference.errors import NOT_OF_MODEL, STATUSES, DeadlineExceededError
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.monitoring.access_log import choose_request_id
from keras_deepseek.inference.monitoring.request_trace import RequestTrace, current_trace
from keras_deepseek.inference.monitoring.request_traces import Attributes, SpanNames
from keras_deepseek.inference.server.service import Service

Inputs = dict[str, Array]
Bind = Callable[[Signature], Inputs]
_LONGEST_TEXT = 1000
"""Characters of a status message. It travels in a header, and clients refuse headers over 8 KiB."""

_FOREVER = 10.0**9
"""Seconds. gRPC may report a missing deadline as one that is farther away than this."""

_REQUEST_ID = "x-request-id"

_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
"""The gRPC statuses that are errors of the server."""

_logger = logging.getLogger(__name__)

UnaryCall = Callable[[Service, bytes, float | None], Awaitable[bytes]]
"""Answers a message. The number is the seconds until the client's deadline, or `None`."""

StreamCall = Callable[[Service, AsyncIterator[bytes], Any], Awaitable[None]]
"""Answers a stream of messages with a stream."""


@dataclass(frozen=True)
class GrpcService:
    """A gRPC service and the functions that answer its methods.

    The functions take and return bytes. If gRPC parsed the messages, it would answer malformed ones
    with INTERNAL, as if the server had failed.

    Args:
        name: The name with its package, as in `"tensorflow.serving.PredictionService"`.
        protocol: The label `protocol` of its calls in the metrics.
        stream_calls: The calls of streams, which count each message themselves.
        management_calls: Names of the calls that load or unload models, which `ModelControl`
            allows or not.
    """

    name: str
    protocol: str
    unary_calls: Mapping[str, UnaryCall]
    stream_calls: Mapping[str, StreamCall] = field(default_factory=dict)
    management_calls: frozenset[str] = frozenset()


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
    """Returns the gRPC status, the message and the metadata by which to answer an error.

    A fault of the server is logged, and not shown to the client. The error's frames are cleared.
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
    service: Service,
    name: str,
    bind: Bind,
    **options: Unpack[RequestOptions],
) -> tuple["asyncio.Future[Inputs]", ModelVersion]:
    """Puts a request into the queue of the model `name`.

    Returns a future for `outputs_of`, and the version that answers. `bind` returns the inputs for
    the signature of that version. The option `timeout` is the seconds until the client's deadline.
    Cancelling the future takes the request out of the queue.
    """
    check_accepts(service, name, options.get("timeout"))
    options["model"] = name
    return service.engine.dispatch_async(bind, current_trace.get(), **options)


def note_model(service: Service, name: str) -> None:
    """Writes the name of a served model to the current trace, also for calls that ask no model."""
    trace = current_trace.get()
    if trace is not None and name in service.engine.models:
        trace.model = name


def check_accepts(service: Service, name: str, timeout: float | None) -> None:
    """Raises an error if the server is not ready, or the client's deadline has passed."""
    service.check_ready(name)
    if timeout is not None and timeout <= 0:
        raise DeadlineExceededError("The request's deadline passed before it was read.")


async def outputs_of(
    model_name: str, future: "asyncio.Future[Inputs]", trace: RequestTrace | None
) -> Inputs:
    """Waits for a model's outputs and returns them. Cancelling this call cancels the `future`.

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


def begin_call(service: Service, context: Any, trace: RequestTrace) -> None:
    """Gives a call a request id and returns it in the trailing metadata, if calls are logged.

    Notes the client's address if shared memory, which is for those of this machine, is on.
    """
    if service.options.shared_memory:
        trace.client = address_of(context.peer())
    if service.access_log is None:
        return
    offered = next((text for key, text in context.invocation_metadata() if key == _REQUEST_ID), "")
    trace.request_id = choose_request_id(offered)
    context.set_trailing_metadata(((_REQUEST_ID, trace.request_id),))


def end_request(
    service: Service, context: Any, trace: RequestTrace, path: str, status: str, size: int
) -> None:
    """Counts a request, and logs and traces it if the server does so.

    `path` is the method, as in `"/inference.GRPCInferenceService/ModelInfer"`, `size` the bytes of
    the response.
    """
    seconds = service.engine.monitor.end(trace, status)
    if service.access_log is None and service.traces is None:
        return
    client = address_of(context.peer())
    if service.traces is not None:
        metadata = {
            key: text
            for key, text in context.invocation_metadata()
            if key in service.traces.fields and isinstance(text, str)
        }
        service.traces.add(trace, seconds, name_grpc(service, path, status, client), metadata)
    if service.access_log is not None:
        service.access_log.write(
            trace,
            method="POST",  # The HTTP/2 method of every gRPC call.
            path=path,
            status=status,
            size=size,
            seconds=seconds,
            client=client,
        )


def read_token(context: Any) -> str | None:
    """Returns the metadata `authorization` of a call: `None` if missing, empty if sent twice."""
    received = [value for key, value in context.invocation_metadata() if key == "authorization"]
    if len(received) > 1:
        return ""
    return str(received[0]) if received else None


def address_of(peer: str) -> str:
    """Returns the IP address in gRPC's name of a client, as in `"ipv4:10.0.0.7:51234"`."""
    kind, _, address = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return address or kind
    return address.rpartition(":")[0].strip("[]")


def name_grpc(service: Service, path: str, status: str, client: str) -> SpanNames:
    """Returns the span name and attributes of a gRPC request."""
    method = path.removeprefix("/")
    attributes: Attributes = {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": status,
        "server.address": service.address[0],
        "server.port": service.address[1],
        "client.address": client,
    }
    has_failed = status in _FAULTS
    if has_failed:
        attributes["error.type"] = status
    return SpanNames(method, attributes, has_failed)
