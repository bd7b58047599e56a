"""What each HTTP path answers: Starlette's endpoints around the pure functions of `protocols`.

The handlers await the engine on the event loop; none of them blocks it for the model's sake.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference.errors import ClosedError, OverloadedError
from keras_deepseek.inference.protocols import tf_serving

if TYPE_CHECKING:
    from keras_deepseek.inference.engine import ServingEngine
    from keras_deepseek.inference.http import HttpServer

_logger = logging.getLogger(__name__)


def build_application(server: "HttpServer") -> Starlette:
    """Returns the ASGI application of a server.

    Args:
        server: `HttpServer`. Its engine, its readiness and its limits are read at each request.
    """
    model = "/v1/models/{name}"
    version = model + "/versions/{version}"
    application = Starlette(
        routes=[
            Route("/healthz", Health),
            # `:predict` goes first: a name takes everything up to the next slash.
            Route(model + ":predict", Predict),
            Route(version + ":predict", Predict),
            Route(model + "/metadata", Metadata),
            Route(version + "/metadata", Metadata),
            Route(model, Status),
            Route(version, Status),
        ],
        exception_handlers={
            HTTPException: _answer_http_error,
            InvalidInputError: _answer_invalid,
            OverloadedError: _answer_overloaded,
            ClosedError: _answer_unready,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_failure,
        },
    )
    application.state.server = server
    return application


class Health(HTTPEndpoint):
    """Whether to send requests here."""

    async def get(self, request: Request) -> Response:
        """Answers 200 when requests are answered, else 503."""
        if not _server(request).ready:
            return _answer_error(503, "Not ready.")
        return _answer_json({"status": "ready"})


class Status(HTTPEndpoint):
    """The state of a model."""

    async def get(self, request: Request) -> Response:
        """Answers as TF Serving's GetModelStatus does."""
        _find_engine(request)
        return _answer_json(tf_serving.format_status(_server(request).ready))


class Metadata(HTTPEndpoint):
    """What a model takes and gives."""

    async def get(self, request: Request) -> Response:
        """Answers as TF Serving's GetModelMetadata does."""
        engine = _find_engine(request)
        return _answer_json(tf_serving.format_metadata(engine.name, engine.signature))


class Predict(HTTPEndpoint):
    """The model's outputs."""

    async def post(self, request: Request) -> Response:
        """Answers in the form, row or column, that the request has."""
        engine = _find_engine(request)
        if not _server(request).ready:
            raise ClosedError(
                f"The model {engine.name!r} is not ready: it is starting or stopping."
            )
        body = await _read_body(request, _server(request).max_body_bytes)
        call = tf_serving.parse_predict(body, engine.signature)
        outputs = await _compute(request, engine, call.inputs)
        return _answer_json(tf_serving.format_outputs(outputs, call.is_row_form))


def _server(request: Request) -> "HttpServer":
    server: HttpServer = request.app.state.server
    return server


def _find_engine(request: Request) -> "ServingEngine":
    """Returns the engine that the path names, or answers 404."""
    engine = _server(request).engine
    name, version = request.path_params["name"], request.path_params.get("version")
    if version is not None and not version.isdecimal():
        raise HTTPException(404, _malformed(request))
    if name != engine.name or version not in (None, tf_serving.VERSION):
        raise HTTPException(404, tf_serving.not_found_message(name, version))
    return engine


async def _read_body(request: Request, limit: int) -> bytes:
    refusal = HTTPException(
        413, f"The body is larger than {limit} bytes. Send fewer rows in one request."
    )
    # uvicorn has refused a length that is not a number.
    if int(request.headers.get("content-length", 0)) > limit:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise refusal
    return bytes(body)


async def _compute(
    request: Request, engine: "ServingEngine", inputs: dict[str, Any]
) -> dict[str, Array]:
    """Returns the outputs; what goes wrong inside the model is logged and answered with 500."""
    answer = engine.submit_async(inputs)
    try:
        return await _unless_hung_up(request, answer)
    except (ClientDisconnect, ClosedError):
        raise
    except Exception as error:
        _logger.exception("The model %r failed.", engine.name)
        raise HTTPException(
            500, f"The model failed with {type(error).__name__}; see the server's log."
        ) from error


async def _unless_hung_up(
    request: Request, answer: "asyncio.Future[dict[str, Array]]"
) -> dict[str, Array]:
    """Returns the answer; a client that hangs up takes its request out of the queue."""
    # The body has been read: all that can still be received is that the client is gone.
    hang_up = asyncio.ensure_future(request.receive())
    hang_up.add_done_callback(lambda _: answer.cancel())
    try:
        return await answer
    except asyncio.CancelledError:
        if hang_up.done() and not hang_up.cancelled():
            raise ClientDisconnect() from None
        raise
    finally:
        hang_up.cancel()


def _answer_json(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(tf_serving.to_json(content), status, headers, "application/json")


def _answer_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _answer_json({"error": message}, status, headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code in (404, 405) and "path_params" not in request.scope:
        message = _malformed(request)
    return _answer_error(error.status_code, message, error.headers)


def _malformed(request: Request) -> str:
    return f"Malformed request: {request.method} {request.url.path}"


async def _answer_invalid(_request: Request, error: Exception) -> Response:
    return _answer_error(400, str(error))


async def _answer_overloaded(_request: Request, error: Exception) -> Response:
    assert isinstance(error, OverloadedError)
    return _answer_error(429, str(error), {"Retry-After": str(error.retry_after)})


async def _answer_unready(_request: Request, error: Exception) -> Response:
    return _answer_error(503, str(error))


async def _answer_nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)


async def _answer_failure(_request: Request, _error: Exception) -> Response:
    # Starlette raises the error again after this, so that the traceback is in the log.
    return _answer_error(500, "The server failed; see its log.")
