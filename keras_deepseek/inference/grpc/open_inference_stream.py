"""Open Inference's ModelStreamInfer: many requests and responses in one call.

The requests of a stream share batches, and the responses come in the order of the requests. The
response to a failed request holds the error, and the stream goes on.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.grpc.answers import (
    Inputs,
    begin_call,
    end_request,
    outputs_of,
    refusal_of,
    time_left,
)
from keras_deepseek.inference.grpc.open_inference_rpc import start_infer
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.monitoring.access_log import choose_request_id
from keras_deepseek.inference.monitoring.request_trace import RequestTrace, current_trace
from keras_deepseek.inference.protocols import open_inference_grpc
from keras_deepseek.inference.protocols.grpc_messages import check_field_count
from keras_deepseek.inference.protocols.open_inference import InferCall
from keras_deepseek.inference.server.service import Service

MAX_WAITING = 64
"""Requests of one stream that may be in flight. Then no further requests are read."""

PATH = "/inference.GRPCInferenceService/ModelStreamInfer"

CALL = ("open_inference_grpc", "ModelStreamInfer")
"""The protocol and the call, for the metrics."""


class _Started(NamedTuple):
    """A request of a stream that waits in a model's queue."""

    trace: RequestTrace
    call: InferCall
    future: "asyncio.Future[Inputs]"
    version: ModelVersion


class _Answered(NamedTuple):
    """The encoded response to a request of a stream, with its status."""

    trace: RequestTrace
    status: str
    data: bytes


_Answers = asyncio.Queue[_Started | _Answered | None]
"""The requests in their order; `None` is the end."""


async def stream_infer(service: Service, requests: AsyncIterator[bytes], context: Any) -> None:
    """Answers each `ModelInferRequest` of a stream.

    When the server stops, the requests that were read are answered and the stream is closed.
    """
    answers: _Answers = asyncio.Queue(MAX_WAITING)
    stream_trace = RequestTrace(*CALL)
    begin_call(service, context, stream_trace)
    request_id = stream_trace.request_id
    reader = asyncio.create_task(_read(service, requests, context, answers, request_id))
    with service.ends_when_stopping(reader):
        try:
            while (started := await answers.get()) is not None:
                await _answer(service, context, started)
            await reader  # It may have failed.
        except asyncio.CancelledError:
            if not service.is_stopping:
                raise
            raise ClosedError("The server is stopping.") from None
        finally:
            reader.cancel()
            while not answers.empty():
                answer = answers.get_nowait()
                if answer is not None:
                    _drop(service, context, answer)


async def _read(
    service: Service,
    requests: AsyncIterator[bytes],
    context: Any,
    answers: _Answers,
    request_id: str,
) -> None:
    try:
        async for data in requests:
            started = await _start(service, data, time_left(context), request_id)
            try:
                await answers.put(started)
            except asyncio.CancelledError:  # The stream ended while the request waited for room.
                _drop(service, context, started)
                raise
    finally:
        await answers.put(None)


async def _start(
    service: Service, data: bytes, timeout: float | None, request_id: str
) -> _Started | _Answered:
    trace, call = RequestTrace(*CALL), None
    trace.request_id = request_id  # The stream's id, unless the request has its own.
    current_trace.set(trace)
    try:
        await check_field_count("inference.ModelInferRequest", data)
        call = open_inference_grpc.parse_infer(data)
        if request_id and call.id:
            trace.request_id = choose_request_id(call.id)
        return _Started(trace, call, *start_infer(service, call, timeout))
    # No failure of one request may end the stream.
    except Exception as error:  # noqa: BLE001
        return _refuse(trace, call, error)


async def _answer(service: Service, context: Any, started: _Started | _Answered) -> None:
    """Writes the response to a streamed request, and records it."""
    status, size = "CANCELLED", 0
    try:
        answered = await _finish(started)
        await context.write(answered.data)
        status, size = answered.status, len(answered.data)
    finally:
        end_request(service, context, started.trace, PATH, status, size)


async def _finish(started: _Started | _Answered) -> _Answered:
    if isinstance(started, _Answered):
        return started
    trace, call, future, version = started
    try:
        outputs = await outputs_of(call.model_name, future, trace)
        data = open_inference_grpc.format_infer(
            call, outputs, call.model_name, str(version.number), in_stream=True
        )
    except Exception as error:  # noqa: BLE001 - As in `_start`.
        return _refuse(trace, call, error)
    return _Answered(trace, "OK", data)


def _refuse(trace: RequestTrace, call: InferCall | None, error: Exception) -> _Answered:
    refusal = refusal_of(error)
    data = open_inference_grpc.format_stream_error(refusal.message, call)
    return _Answered(trace, refusal.status, data)


def _drop(service: Service, context: Any, started: _Started | _Answered) -> None:
    """Removes a request from the queue, because its client is gone."""
    if isinstance(started, _Started):
        started.future.cancel()
    end_request(service, context, started.trace, PATH, "CANCELLED", 0)
