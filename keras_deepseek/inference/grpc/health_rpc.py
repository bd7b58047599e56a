"""gRPC's health service, which load balancers and `grpc_health_probe` ask.

`grpcio-health-checking` does not fit: its answers would have to be set at each change of
`GrpcServer.ready`, it answers a malformed message with INTERNAL, and its calls would be missing in
the metrics and the access log.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from keras_deepseek.inference.grpc.answers import StatusError
from keras_deepseek.inference.protocols.messages import (
    message_pool,
    parse_message,
    write_message,
)

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_server import GrpcServer

_POLL_SECONDS = 0.25
"""Seconds between two looks of Watch at the engine's readiness."""


async def check(server: "GrpcServer", data: bytes, _timeout: float | None) -> bytes:
    """Answers a health check with the serving status of the server."""
    service = _read_service(data)
    if not _is_known(service):
        raise StatusError("NOT_FOUND", f"Unknown service {service!r:.100}.")
    return _write_status(_status(server))


async def watch(server: "GrpcServer", data: bytes, context: Any) -> None:
    """Streams the health status now and at each change, until the server stops."""
    is_known = _is_known(_read_service(data))
    written = ""
    while True:
        is_last = server.is_stopping
        status = _status(server) if is_known else "SERVICE_UNKNOWN"
        if status != written:
            await context.write(_write_status(status))
            written = status
        if is_last:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.stopping.wait(), _POLL_SECONDS)


UNARY_CALLS = {"Check": check}


def _read_service(data: bytes) -> str:
    service: str = parse_message("grpc.health.v1.HealthCheckRequest", data).service
    return service


def _is_known(service: str) -> bool:
    """Returns true for a service's name, and for the empty name, which means the whole server."""
    if not service:
        return True
    try:
        message_pool().FindServiceByName(service)
    except KeyError:
        return False
    return True


def _status(server: "GrpcServer") -> str:
    return "SERVING" if server.ready else "NOT_SERVING"


def _write_status(status: str) -> bytes:
    return write_message("grpc.health.v1.HealthCheckResponse", status=status)
