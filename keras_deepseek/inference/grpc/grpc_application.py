"""Dispatches gRPC calls to the services of a server, and answers them.

All of it runs on the server's event loop. Nothing blocks there while the model computes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from keras_deepseek.inference.grpc import (
    model_service_rpc,
    open_inference_rpc,
    open_inference_stream,
    tf_serving_rpc,
)
from keras_deepseek.inference.grpc.answers import Refusal, StatusError, refusal_of, time_left
from keras_deepseek.inference.grpc.call_records import begin_call, end_request
from keras_deepseek.inference.grpc.grpc_service import GrpcService, StreamCall, UnaryCall
from keras_deepseek.inference.monitoring.request_trace import RequestTrace, current_trace
from keras_deepseek.inference.protocols.grpc_messages import check_field_count, message_pool

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_server import GrpcServer

SERVICES = (
    GrpcService(
        "tensorflow.serving.PredictionService", "tf_serving_grpc", tf_serving_rpc.UNARY_CALLS
    ),
    GrpcService(
        "tensorflow.serving.ModelService",
        "tf_serving_grpc",
        model_service_rpc.UNARY_CALLS,
        management_calls=frozenset({"HandleReloadConfigRequest"}),
    ),
    GrpcService(
        "inference.GRPCInferenceService",
        "open_inference_grpc",
        open_inference_rpc.UNARY_CALLS,
        stream_calls={"ModelStreamInfer": open_inference_stream.stream_infer},
        management_calls=frozenset({"RepositoryModelLoad", "RepositoryModelUnload"}),
    ),
)
"""The services of all protocols. A new one is named here; its messages are in `protocols/proto/`.

`standard_services` has gRPC's own.
"""


class GrpcApplication(grpc.GenericRpcHandler):
    """Answers the calls of all services for one server."""

    def __init__(self, server: "GrpcServer") -> None:
        # One dict for all services: gRPC would ask them one after the other.
        self._methods = {}
        for service in SERVICES:
            methods = message_pool().FindServiceByName(service.name).methods_by_name
            for name, unary in service.unary_calls.items():
                self._methods[f"/{service.name}/{name}"] = grpc.unary_unary_rpc_method_handler(
                    _answer_unary(server, service, methods[name], unary)
                )
            for name, stream in service.stream_calls.items():
                self._methods[f"/{service.name}/{name}"] = grpc.stream_stream_rpc_method_handler(
                    _answer_stream(server, service, name, stream)
                )

    def service(self, handler_call_details: Any) -> Any:
        """Returns the handler of a gRPC method, or `None` if there is no such method."""
        return self._methods.get(handler_call_details.method)


def _answer_unary(
    server: "GrpcServer", service: GrpcService, method: Any, call: UnaryCall
) -> Callable[[bytes, Any], Awaitable[bytes]]:
    name, request_type = method.name, method.input_type.full_name
    path = f"/{service.name}/{name}"

    async def run(data: bytes, context: Any) -> bytes | Refusal:
        try:
            if name in service.management_calls:
                server.model_control.check(_read_token(context))
            else:
                _check_token(server, context)
            await check_field_count(request_type, data)
            return await call(server, data, time_left(context))
        except Exception as error:  # noqa: BLE001 - The client and the log are told.
            return refusal_of(error)

    async def answer(data: bytes, context: Any) -> bytes:
        trace = RequestTrace(service.protocol, name)
        current_trace.set(trace)
        status, size = "CANCELLED", 0
        begin_call(server, context, trace)
        try:
            result = await run(data, context)
            # gRPC keeps the error of `abort`, and this frame, until garbage is collected.
            del data
            if isinstance(result, Refusal):
                status = result.status
                await server.wait_to_answer()
                await _abort(context, result)
            status, size = "OK", len(result)
        finally:
            end_request(server, context, trace, path, status, size)
            del trace
        await server.wait_to_answer()
        return result

    return answer


def _answer_stream(
    server: "GrpcServer", service: GrpcService, name: str, call: StreamCall
) -> Callable[[AsyncIterator[bytes], Any], Awaitable[None]]:
    async def answer(requests: AsyncIterator[bytes], context: Any) -> None:
        try:
            _check_token(server, context)
        except StatusError as error:  # No request is read: the refused call counts as one.
            trace = RequestTrace(service.protocol, name)
            begin_call(server, context, trace)
            end_request(server, context, trace, f"/{service.name}/{name}", error.status, 0)
            await _abort(context, refusal_of(error))
        try:
            await call(server, requests, context)
        except Exception as error:  # noqa: BLE001 - As above.
            await _abort(context, refusal_of(error))

    return answer


def _check_token(server: "GrpcServer", context: Any) -> None:
    """Refuses a call without a valid token, if the server has tokens."""
    if server.tokens is None:
        return
    received = _read_token(context)
    if not server.tokens.allows(received):
        raise StatusError(
            "UNAUTHENTICATED",
            f"{'A token is required' if received is None else 'The token is not valid'}. Send the "
            "metadata authorization: Bearer TOKEN.",
        )


def _read_token(context: Any) -> str | None:
    """Returns the metadata `authorization` of a call: `None` if missing, empty if sent twice."""
    received = [value for key, value in context.invocation_metadata() if key == "authorization"]
    if len(received) > 1:
        return ""
    return str(received[0]) if received else None


async def _abort(context: Any, refusal: Refusal) -> NoReturn:
    """Ends a gRPC call with an error status. Raises, as gRPC's `abort` does."""
    metadata = refusal.metadata and (*(context.trailing_metadata() or ()), *refusal.metadata)
    await context.abort(grpc.StatusCode[refusal.status], refusal.message, metadata)
    raise AssertionError("gRPC's `abort` has raised.")
