"""The gRPC services of all protocols, and the dispatch of calls to them.

All of it runs on the server's event loop. Nothing blocks there while the model computes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from keras_deepseek.inference.grpc import (
    open_inference_rpc,
    open_inference_stream,
    tf_serving_rpc,
)
from keras_deepseek.inference.grpc.answers import (
    GrpcService,
    Refusal,
    StatusError,
    StreamCall,
    UnaryCall,
    begin_call,
    end_request,
    read_token,
    refusal_of,
    time_left,
)
from keras_deepseek.inference.monitoring.request_trace import RequestTrace, current_trace
from keras_deepseek.inference.protocols.grpc_messages import check_field_count, message_pool
from keras_deepseek.inference.server.service import Service

SERVICES = (
    GrpcService(
        "tensorflow.serving.PredictionService", "tf_serving_grpc", tf_serving_rpc.PREDICTION_CALLS
    ),
    GrpcService(
        "tensorflow.serving.ModelService",
        "tf_serving_grpc",
        tf_serving_rpc.MODEL_CALLS,
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
    """Answers the calls of all gRPC services for one `Service`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._held_back: asyncio.Event | None = None
        # One dict for all services: gRPC would ask them one after the other.
        self._methods = {}
        for grpc_service in SERVICES:
            prefix = f"/{grpc_service.name}/"
            methods = message_pool().FindServiceByName(grpc_service.name).methods_by_name
            for name, unary in grpc_service.unary_calls.items():
                self._methods[prefix + name] = grpc.unary_unary_rpc_method_handler(
                    self._answer_unary(grpc_service, methods[name], unary)
                )
            for name, stream in grpc_service.stream_calls.items():
                self._methods[prefix + name] = grpc.stream_stream_rpc_method_handler(
                    self._answer_stream(grpc_service, name, stream)
                )

    def service(self, handler_call_details: Any) -> Any:
        """Returns the handler of a gRPC method, or `None` if there is no such method."""
        return self._methods.get(handler_call_details.method)

    def hold_answers(self) -> None:
        """Holds all further answers back until `release_answers`."""
        self._held_back = asyncio.Event()

    def release_answers(self) -> None:
        """Gives the clients the answers that were held back."""
        if self._held_back is not None:
            self._held_back.set()

    async def _wait_to_answer(self) -> None:
        if self._held_back is not None:
            await self._held_back.wait()

    def _answer_unary(
        self, grpc_service: GrpcService, method: Any, call: UnaryCall
    ) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """Returns the handler of a call with one answer. `method` is the call's descriptor."""
        service, name, request_type = self._service, method.name, method.input_type.full_name
        path = f"/{grpc_service.name}/{name}"

        async def run(data: bytes, context: Any) -> bytes | Refusal:
            try:
                if name in grpc_service.management_calls:
                    service.model_control.check(read_token(context))
                else:
                    _check_token(service, context)
                await check_field_count(request_type, data)
                return await call(service, data, time_left(context))
            except Exception as error:  # noqa: BLE001 - The client and the log are told.
                return refusal_of(error)

        async def answer(data: bytes, context: Any) -> bytes:
            trace = RequestTrace(grpc_service.protocol, name)
            current_trace.set(trace)
            status, size = "CANCELLED", 0  # They stay so if the client cancels the call.
            begin_call(service, context, trace)
            try:
                result = await run(data, context)
                # gRPC keeps the error of `abort`, and this frame, until garbage is collected.
                del data
                if isinstance(result, Refusal):
                    status = result.status
                    await self._wait_to_answer()
                    await _abort(context, result)
                status, size = "OK", len(result)
            finally:
                end_request(service, context, trace, path, status, size)
                del trace
            await self._wait_to_answer()
            return result

        return answer

    def _answer_stream(
        self, grpc_service: GrpcService, name: str, call: StreamCall
    ) -> Callable[[AsyncIterator[bytes], Any], Awaitable[None]]:
        """Returns the handler of a stream, whose requests `call` counts."""
        service, path = self._service, f"/{grpc_service.name}/{name}"

        async def answer(requests: AsyncIterator[bytes], context: Any) -> None:
            try:
                _check_token(service, context)
            except StatusError as error:  # No request is read: the refused call counts as one.
                trace = RequestTrace(grpc_service.protocol, name)
                begin_call(service, context, trace)
                end_request(service, context, trace, path, error.status, 0)
                await _abort(context, refusal_of(error))
            try:
                await call(service, requests, context)
            except Exception as error:  # noqa: BLE001 - As above.
                await _abort(context, refusal_of(error))

        return answer


def _check_token(service: Service, context: Any) -> None:
    if service.tokens is None:
        return
    received = read_token(context)
    if not service.tokens.allows(received):
        raise StatusError(
            "UNAUTHENTICATED",
            f"{'A token is required' if received is None else 'The token is not valid'}. Send the "
            "metadata authorization: Bearer TOKEN.",
        )


async def _abort(context: Any, refusal: Refusal) -> NoReturn:
    """Ends a gRPC call with an error status. Raises, as gRPC's `abort` does."""
    metadata = refusal.metadata and (*(context.trailing_metadata() or ()), *refusal.metadata)
    await context.abort(grpc.StatusCode[refusal.status], refusal.message, metadata)
    raise AssertionError("gRPC's `abort` has raised.")
