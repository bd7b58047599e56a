"""Request ids of gRPC calls, and their records in the metrics, the access log and the traces."""

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from keras_deepseek.inference.monitoring.access_log import choose_request_id
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.monitoring.request_traces import Attributes, SpanNames

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_server import GrpcServer

_REQUEST_ID = "x-request-id"

_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
"""The gRPC statuses that are errors of the server."""


def begin_call(server: "GrpcServer", context: Any, trace: RequestTrace) -> None:
    """Gives a call a request id and returns it in the trailing metadata, if calls are logged."""
    if server.access_log is None:
        return
    offered = next((text for key, text in context.invocation_metadata() if key == _REQUEST_ID), "")
    trace.request_id = choose_request_id(offered)
    context.set_trailing_metadata(((_REQUEST_ID, trace.request_id),))


def end_request(
    server: "GrpcServer", context: Any, trace: RequestTrace, path: str, status: str, size: int
) -> None:
    """Counts a request, and logs and traces it if the server does so.

    `path` is the method, as in `"/inference.GRPCInferenceService/ModelInfer"`, `size` the bytes of
    the response.
    """
    seconds = server.engine.monitor.end(trace, status)
    if server.access_log is None and server.traces is None:
        return
    client = address_of(context.peer())
    if server.traces is not None:
        metadata = {
            key: text
            for key, text in context.invocation_metadata()
            if key in server.traces.fields and isinstance(text, str)
        }
        server.traces.add(trace, seconds, name_grpc(server, path, status, client), metadata)
    if server.access_log is not None:
        server.access_log.write(
            trace,
            method="POST",  # The HTTP/2 method of every gRPC call.
            path=path,
            status=status,
            size=size,
            seconds=seconds,
            client=client,
        )


def address_of(peer: str) -> str:
    """Returns the IP address in gRPC's name of a client, as in `"ipv4:10.0.0.7:51234"`."""
    kind, _, address = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return address or kind
    return address.rpartition(":")[0].strip("[]")


def name_grpc(server: "GrpcServer", path: str, status: str, client: str) -> SpanNames:
    """Returns the span name and attributes of a gRPC request."""
    method = path.removeprefix("/")
    attributes: Attributes = {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": status,
        "server.address": server.host,
        "server.port": server.port,
        "client.address": client,
    }
    has_failed = status in _FAULTS
    if has_failed:
        attributes["error.type"] = status
    return SpanNames(method, attributes, has_failed)
