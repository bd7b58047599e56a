"""gRPC's own health calls: Check, and Watch, which tells of each change."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from keras_deepseek.inference.grpc.answers import StatusError
from keras_deepseek.inference.protocols import health_grpc
from keras_deepseek.inference.protocols.health_grpc import HEALTH
from keras_deepseek.inference.protocols.open_inference_messages import OPEN_INFERENCE
from keras_deepseek.inference.protocols.tf_serving_messages import TF_SERVING

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_server import GrpcServer

SERVICES = frozenset({"", *HEALTH.services, *OPEN_INFERENCE.services, *TF_SERVING.services})
"""Those that can be asked about: the empty name is the whole server. They are all ready or none."""

_LOOK_SECONDS = 0.25
"""How often Watch looks whether the engine has become ready; that the server stops it is told."""


async def check(server: "GrpcServer", data: bytes, _timeout: float | None) -> bytes:
    """Answers whether requests are answered."""
    service = health_grpc.parse_check(data)
    if service not in SERVICES:
        raise StatusError("NOT_FOUND", f"Unknown service {service!r:.100}.")
    return health_grpc.format_status(_status(server))


async def watch(server: "GrpcServer", data: bytes, context: Any) -> None:
    """Tells whether requests are answered, now and whenever that changes, until the server stops.

    Args:
        server: `GrpcServer`.
        data: bytes. The request.
        context: `grpc.aio.ServicerContext`.
    """
    is_known = health_grpc.parse_check(data) in SERVICES
    told = ""
    while True:
        is_last = server.is_stopping
        status = _status(server) if is_known else "SERVICE_UNKNOWN"
        if status != told:
            await context.write(health_grpc.format_status(status))
            told = status
        if is_last:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.stopping.wait(), _LOOK_SECONDS)


CALLS = {"Check": check}
"""The call of `grpc.health.v1.Health` that has one answer."""


def _status(server: "GrpcServer") -> str:
    return "SERVING" if server.ready else "NOT_SERVING"
