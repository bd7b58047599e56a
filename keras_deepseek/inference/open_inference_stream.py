"""Open Inference's ModelStreamInfer: many requests and their answers in one call.

The requests of a stream share batches; their answers come in the order of the requests. One that
fails is told so in its answer, and the stream goes on.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.grpc_answers import Inputs, outputs_of, refusal_of, time_left
from keras_deepseek.inference.model_version import ModelVersion
from keras_deepseek.inference.open_inference_rpc import start_infer
from keras_deepseek.inference.protocols import open_inference_grpc
from keras_deepseek.inference.protocols.open_inference import InferCall

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc_server import GrpcServer

MAX_WAITING = 64
"""Requests of one stream that are computed at a time; no more are read."""


class _Started(NamedTuple):
    """A request that is in a model's queue."""

    call: InferCall
    future: "asyncio.Future[Inputs]"
    version: ModelVersion


_Answers = asyncio.Queue[_Started | bytes | None]
"""What is answered next: a request, the words of one that was refused, or the end."""


async def stream_infer(server: "GrpcServer", requests: AsyncIterator[bytes], context: Any) -> None:
    """Answers each `ModelInferRequest` of a stream.

    Args:
        server: `GrpcServer`. When it stops, what was read is answered and the stream is closed.
        requests: asynchronous iterator of messages.
        context: `grpc.aio.ServicerContext`.

    Raises:
        ClosedError: The server has closed the stream.
    """
    answers: _Answers = asyncio.Queue(MAX_WAITING)
    reader = asyncio.create_task(_read(server, requests, context, answers))
    with server.ends_when_stopping(reader):
        try:
            while (started := await answers.get()) is not None:
                await context.write(await _finish(started))
            await reader  # It may have failed.
        except asyncio.CancelledError:
            if not server.is_stopping:
                raise
            raise ClosedError("The server is stopping.") from None
        finally:
            reader.cancel()
            while not answers.empty():
                left = answers.get_nowait()
                if isinstance(left, _Started):
                    left.future.cancel()


async def _read(
    server: "GrpcServer", requests: AsyncIterator[bytes], context: Any, answers: _Answers
) -> None:
    try:
        async for data in requests:
            await answers.put(_start(server, data, time_left(context)))
    finally:
        await answers.put(None)


def _start(server: "GrpcServer", data: bytes, timeout: float | None) -> _Started | bytes:
    call = None
    try:
        call = open_inference_grpc.parse_infer(data)
        return _Started(call, *start_infer(server, call, timeout))
    # Whatever it is, the other requests of the stream go on.
    except Exception as error:  # noqa: BLE001
        return open_inference_grpc.format_stream_error(refusal_of(error).message, call)


async def _finish(started: _Started | bytes) -> bytes:
    if isinstance(started, bytes):
        return started
    call, future, version = started
    try:
        outputs = await outputs_of(call.model_name, future)
        return open_inference_grpc.format_infer(
            call, outputs, call.model_name, str(version.number), in_stream=True
        )
    except Exception as error:  # noqa: BLE001 - As in `_start`.
        return open_inference_grpc.format_stream_error(refusal_of(error).message, call)
