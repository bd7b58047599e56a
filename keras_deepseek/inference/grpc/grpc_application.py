"""What each gRPC method answers: the calls of all protocols, and what their errors are answered.

All of it runs on the server's event loop, and nothing waits there for the model. Messages are bytes
both ways: gRPC's own reading of them would answer what it can't read with INTERNAL.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc

from keras_deepseek.inference.grpc import (
    health_rpc,
    model_service_rpc,
    open_inference_rpc,
    open_inference_stream,
    tf_serving_rpc,
)
from keras_deepseek.inference.grpc.answers import Call, Refusal, StatusError, refusal_of, time_left
from keras_deepseek.inference.grpc.call_end import begin_call, end_request
from keras_deepseek.inference.monitoring.request_trace import RequestTrace, current_trace

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_server import GrpcServer

UNARY_CALLS: dict[str, Mapping[str, Call]] = {
    "tensorflow.serving.PredictionService": tf_serving_rpc.CALLS,
    "tensorflow.serving.ModelService": model_service_rpc.CALLS,
    "inference.GRPCInferenceService": open_inference_rpc.CALLS,
    "grpc.health.v1.Health": health_rpc.CALLS,
}
"""The calls of one answer by service and name."""


_PROTOCOLS = {"tensorflow.serving": "tf_serving", "inference": "open_inference"}
"""For the metrics, by the first part of a service's name."""

_HEALTH = "grpc.health.v1.Health"


class GrpcApplication(grpc.GenericRpcHandler):
    """Answers the calls of every service for the engine of one server.

    Args:
        server: `GrpcServer`. Its engine and its readiness are read at each call.
    """

    def __init__(self, server: "GrpcServer") -> None:
        # One look-up for each call, where gRPC would ask each service in its turn.
        self._methods = {
            f"/{service}/{name}": grpc.unary_unary_rpc_method_handler(
                _unary(server, service, name, call)
            )
            for service, calls in UNARY_CALLS.items()
            for name, call in calls.items()
        }
        self._methods[open_inference_stream.PATH] = grpc.stream_stream_rpc_method_handler(
            _stream(server)
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


def _unary(
    server: "GrpcServer", service: str, name: str, call: Call
) -> Callable[[bytes, Any], Awaitable[bytes]]:
    protocol = _PROTOCOLS.get(service.rpartition(".")[0] or service, "grpc")
    path = f"/{service}/{name}"

    async def answer(data: bytes, context: Any) -> bytes:
        trace = RequestTrace(f"{protocol}_grpc" if protocol != "grpc" else protocol, name)
        current_trace.set(trace)
        status, size = "CANCELLED", 0
        begin_call(server, context, trace)
        try:
            with server.calls:
                if service != _HEALTH:
                    _admit(server, context)
                result = await call(server, data, time_left(context))
            status, size = "OK", len(result)
        except Exception as error:
            refusal = refusal_of(error)
            status = refusal.status
            await _abort(context, refusal)
            raise  # Not reached: gRPC's `abort` raises.
        finally:
            end_request(server, context, trace, path, status, size)
        return result

    return answer


def _admit(server: "GrpcServer", context: Any) -> None:
    """Refuses a call without a token, where the server asks for one."""
    if server.tokens is None:
        return
    shown = [value for key, value in context.invocation_metadata() if key == "authorization"]
    if len(shown) != 1 or not server.tokens.allows(str(shown[0])):
        raise StatusError(
            "UNAUTHENTICATED", "A token is asked for: send the metadata authorization: Bearer TOKEN"
        )


def _stream(
    server: "GrpcServer",
) -> Callable[[AsyncIterator[bytes], Any], Awaitable[None]]:
    async def answer(requests: AsyncIterator[bytes], context: Any) -> None:
        try:
            _admit(server, context)
        except StatusError as error:  # None of its requests is read: it counts as one.
            trace = RequestTrace(*open_inference_stream.CALL)
            begin_call(server, context, trace)
            end_request(server, context, trace, open_inference_stream.PATH, error.status, 0)
            await _refuse(context, error)
        try:
            with server.calls:
                await open_inference_stream.stream_infer(server, requests, context)
        except Exception as error:  # noqa: BLE001 - It is told and logged.
            await _refuse(context, error)

    return answer


def _watch(server: "GrpcServer") -> Callable[[bytes, Any], Awaitable[None]]:
    async def answer(data: bytes, context: Any) -> None:
        try:
            with server.calls:
                await health_rpc.watch(server, data, context)
        except Exception as error:  # noqa: BLE001 - As above.
            await _refuse(context, error)

    return answer


async def _refuse(context: Any, error: Exception) -> None:
    """Ends a call with the status of an error."""
    await _abort(context, refusal_of(error))


async def _abort(context: Any, refusal: Refusal) -> None:
    status = grpc.StatusCode[refusal.status]
    metadata = refusal.metadata and (*(context.trailing_metadata() or ()), *refusal.metadata)
    await context.abort(status, refusal.message, metadata)
