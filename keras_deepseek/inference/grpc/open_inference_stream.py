"""Open Inference's ModelStreamInfer: many requests and responses in one call.

The requests of a stream share batches, and the responses come in the order of the requests. The
response to a failed request holds the error, and the stream goes on. A language model answers by as
many responses as its text has pieces; those of several texts come as they are written.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.grpc.answers import (
    Inputs,
    address_of,
    begin_call,
    check_accepts,
    end_request,
    outputs_of,
    read_token,
    refusal_of,
    time_left,
)
from keras_deepseek.inference.grpc.open_inference_rpc import (
    format_infer,
    parse_infer,
    read_version,
    start_infer,
)
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.text_version import TextVersion
from keras_deepseek.inference.monitoring.access_log import choose_request_id
from keras_deepseek.inference.monitoring.request_trace import RequestTrace, current_trace
from keras_deepseek.inference.protocols import open_inference_grpc
from keras_deepseek.inference.protocols.grpc_messages import check_field_count
from keras_deepseek.inference.protocols.open_inference import InferCall
from keras_deepseek.inference.protocols.open_inference_parameters import read_timeout_and_priority
from keras_deepseek.inference.protocols.open_inference_text import (
    TextCall,
    format_text,
    read_text_call,
)
from keras_deepseek.inference.server.service import Service
from keras_deepseek.inference.text.text_answer import TextAnswer
from keras_deepseek.text.sampling import SamplingOptions

MAX_WAITING = 64
"""Requests of one stream that may be in flight. Then no further requests are read."""

PATH = "/inference.GRPCInferenceService/ModelStreamInfer"

CALL = ("open_inference_grpc", "ModelStreamInfer")
"""The protocol and the call, for the metrics."""


class _Started(NamedTuple):
    """A request of a stream: it waits in a model's queue, or was refused.

    `responses` are the encoded responses to it, with their statuses. Those of a text come side by
    side with the responses to other requests.
    """

    trace: RequestTrace
    cancel: Callable[[], object]
    responses: AsyncIterator[tuple[str, bytes]]
    is_text: bool = False


_Answers = asyncio.Queue[_Started | None]
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
            await _answer_all(service, context, answers)
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


async def _answer_all(service: Service, context: Any, answers: _Answers) -> None:
    """Answers the requests of a stream: tensors in their order, and texts side by side."""
    write_lock = asyncio.Lock()  # gRPC writes one message at a time.
    room = asyncio.Semaphore(MAX_WAITING)
    async with asyncio.TaskGroup() as writers:
        while True:
            await room.acquire()
            started = await answers.get()
            if started is None:
                return
            writing = _answer(service, context, write_lock, started)
            if started.is_text:
                writers.create_task(writing).add_done_callback(lambda _: room.release())
            else:
                await writing
                room.release()


async def _read(
    service: Service,
    requests: AsyncIterator[bytes],
    context: Any,
    answers: _Answers,
    request_id: str,
) -> None:
    try:
        async for data in requests:
            started = await _start(service, data, context, request_id)
            try:
                await answers.put(started)
            except asyncio.CancelledError:  # The stream ended while the request waited for room.
                _drop(service, context, started)
                raise
    finally:
        await answers.put(None)


async def _start(service: Service, data: bytes, context: Any, request_id: str) -> _Started:
    trace, call = RequestTrace(*CALL), None
    if service.options.shared_memory:
        trace.client = address_of(context.peer())
    trace.request_id = request_id  # The stream's id, unless the request has its own.
    current_trace.set(trace)
    try:
        await check_field_count("inference.ModelInferRequest", data)
        call = await parse_infer(service, data)
        if request_id and call.id:
            trace.request_id = choose_request_id(call.id)
        version = service.engine.find(call.model_name, read_version(service, call))
        if version.is_text:
            return await _start_text(service, trace, call, context)
        future, model_version = start_infer(service, call, time_left(context))
        return _Started(trace, future.cancel, _respond(trace, call, future, model_version))
    # No failure of one request may end the stream.
    except Exception as error:  # noqa: BLE001
        return _Started(trace, lambda: None, _refuse(*_format_error(call, error)))


async def _start_text(
    service: Service, trace: RequestTrace, call: InferCall, context: Any
) -> _Started:
    limits = read_timeout_and_priority(call.parameters).within(time_left(context))
    check_accepts(service, call.model_name, limits.timeout)
    text_call = read_text_call(call)
    answer, version = await service.engine.dispatch_text_async(
        lambda _version: text_call.prompt,
        SamplingOptions.from_request(text_call.settings),
        model=call.model_name,
        version=read_version(service, call),
        trace=trace,
        body={"prompt": text_call.prompt, **text_call.settings},
        timeout=limits.timeout,
        priority=limits.priority,
        # A client is who has a token, where the server asks for one, or else an address.
        client=(service.tokens and read_token(context)) or address_of(context.peer()),
    )
    responses = _respond_with_text(call, text_call, answer, version)
    return _Started(trace, answer.cancel, responses, is_text=True)


async def _answer(
    service: Service, context: Any, write_lock: asyncio.Lock, started: _Started
) -> None:
    """Writes the responses to a request, and records it."""
    status = last_status = "CANCELLED"
    size = 0
    try:
        async for response_status, data in started.responses:
            async with write_lock:
                await context.write(data)
            size += len(data)
            last_status = response_status
        status = last_status
    finally:
        started.cancel()
        end_request(service, context, started.trace, PATH, status, size)


async def _respond(
    trace: RequestTrace, call: InferCall, future: "asyncio.Future[Inputs]", version: ModelVersion
) -> AsyncIterator[tuple[str, bytes]]:
    try:
        outputs = await outputs_of(call.model_name, future, trace)
        data = await format_infer(call, outputs, version, in_stream=True)
    except Exception as error:  # noqa: BLE001 - As in `_start`.
        yield _format_error(call, error)
    else:
        yield "OK", data


async def _respond_with_text(
    call: InferCall, text_call: TextCall, answer: TextAnswer, version: TextVersion
) -> AsyncIterator[tuple[str, bytes]]:
    name, number = version.name, str(version.number)
    try:
        async for texts, is_last in _texts_of(text_call, answer):
            has_more = not is_last or text_call.has_empty_end
            yield "OK", format_text(call, texts, name, number, is_last=not has_more)
        if text_call.has_empty_end:
            yield "OK", format_text(call, None, name, number, is_last=True)
    except Exception as error:  # noqa: BLE001 - As in `_start`.
        yield _format_error(call, error)


async def _texts_of(
    text_call: TextCall, answer: TextAnswer
) -> AsyncIterator[tuple[list[str], bool]]:
    """Yields the new text of each choice, and whether it is the last one."""
    if not text_call.is_streamed:
        result = await answer.wait()
        yield [text_call.prefix + choice.text for choice in result.choices], True
        return
    num_choices = num_open = len(answer.requests)
    async for piece in answer:
        num_open -= piece.finish_reason is not None
        if piece.text or not num_open:
            texts = [""] * num_choices
            texts[piece.choice] = piece.text
            yield texts, not num_open


async def _refuse(status: str, data: bytes) -> AsyncIterator[tuple[str, bytes]]:
    yield status, data


def _format_error(call: InferCall | None, error: Exception) -> tuple[str, bytes]:
    refusal = refusal_of(error)
    return refusal.status, open_inference_grpc.format_stream_error(refusal.message, call)


def _drop(service: Service, context: Any, started: _Started) -> None:
    """Removes a request from the queue, because its client is gone."""
    started.cancel()
    end_request(service, context, started.trace, PATH, "CANCELLED", 0)
