"""What each gRPC method answers: the calls of all protocols, and what their errors are answered.

All of it runs on the server's event loop, and nothing waits there for the model. Messages are bytes
both ways: gRPC's own reading of them would answer what it can't read with INTERNAL.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc

from keras_deepseek.inference import (
    health_rpc,
    model_service_rpc,
    open_inference_rpc,
    open_inference_stream,
    tf_serving_rpc,
)
from keras_deepseek.inference.grpc_answers import refusal_of, time_left

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc_server import GrpcServer

_Call = Callable[["GrpcServer", bytes, float | None], Awaitable[bytes]]

UNARY_CALLS: dict[str, Mapping[str, _Call]] = {
    "tensorflow.serving.PredictionService": tf_serving_rpc.CALLS,
    "tensorflow.serving.ModelService": model_service_rpc.CALLS,
    "inference.GRPCInferenceService": open_inference_rpc.CALLS,
    "grpc.health.v1.Health": health_rpc.CALLS,
}
"""The calls of one answer by service and name."""


class GrpcApplication(grpc.GenericRpcHandler):
    """Answers the calls of every service for the engine of one server.

    Args:
        server: `GrpcServer`. Its engine and its readiness are read at each call.
    """

    def __init__(self, server: "GrpcServer") -> None:
        # One look-up for each call, where gRPC would ask each service in its turn.
        self._methods = {
            f"/{service}/{name}": grpc.unary_unary_rpc_method_handler(_unary(server, call))
            for service, calls in UNARY_CALLS.items()
            for name, call in calls.items()
        }
        self._methods["/inference.GRPCInferenceService/ModelStreamInfer"] = (
            grpc.stream_stream_rpc_method_handler(_stream(server))
        )
        self._methods["/grpc.health.v1.Health/Watch"] = grpc.unary_stream_rpc_method_handler(
            _watch(server)
        )

    def service(self, handler_call_details: Any) -> Any:
        """Returns what answers a call, or `None` where there is no such method.

        Args:
            handler_call_details: `grpc.HandlerCallDetails`.
        """
        return self._methods.get(handler_call_details.method)


def _unary(server: "GrpcServer", call: _Call) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def answer(data: bytes, context: Any) -> bytes:
        try:
            return await call(server, data, time_left(context))
        except Exception as error:
            await _refuse(context, error)
            raise  # Not reached: gRPC's `abort` raises.

    return answer


def _stream(
    server: "GrpcServer",
) -> Callable[[AsyncIterator[bytes], Any], Awaitable[None]]:
    async def answer(requests: AsyncIterator[bytes], context: Any) -> None:
        try:
            await open_inference_stream.stream_infer(server, requests, context)
        except Exception as error:  # noqa: BLE001 - It is told and logged.
            await _refuse(context, error)

    return answer


def _watch(server: "GrpcServer") -> Callable[[bytes, Any], Awaitable[None]]:
    async def answer(data: bytes, context: Any) -> None:
        try:
            await health_rpc.watch(server, data, context)
        except Exception as error:  # noqa: BLE001 - As above.
            await _refuse(context, error)

    return answer


async def _refuse(context: Any, error: Exception) -> None:
    """Ends a call with the status of an error."""
    refusal = refusal_of(error)
    status = grpc.StatusCode[refusal.status]
    await context.abort(status, refusal.message, refusal.metadata)
