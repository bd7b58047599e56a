"""A gRPC service: what a protocol registers in `grpc_application`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_server import GrpcServer

UnaryCall = Callable[["GrpcServer", bytes, float | None], Awaitable[bytes]]
"""Answers a message. The number is the seconds until the client's deadline, or `None`."""

StreamCall = Callable[["GrpcServer", AsyncIterator[bytes], Any], Awaitable[None]]
"""Answers a stream of messages with a stream."""


@dataclass(frozen=True)
class GrpcService:
    """A gRPC service and the functions that answer its methods.

    Messages are bytes both ways: gRPC would answer bytes that it can't parse with INTERNAL.

    Args:
        name: With its package, as in `"tensorflow.serving.PredictionService"`.
        protocol: The label `protocol` of its calls in the metrics.
        stream_calls: They count each message themselves.
        management_calls: Names of the calls that load or unload models, which `ModelControl`
            allows or not.
    """

    name: str
    protocol: str
    unary_calls: Mapping[str, UnaryCall]
    stream_calls: Mapping[str, StreamCall] = field(default_factory=dict)
    management_calls: frozenset[str] = frozenset()
