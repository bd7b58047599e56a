"""The names and attributes of gRPC requests in traces."""

from typing import TYPE_CHECKING

from keras_deepseek.inference.monitoring.span_names import Attributes, SpanNames

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_server import GrpcServer

_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
"""The gRPC statuses that are errors of the server."""


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
