"""The HTTP server. `http_protocol` reads the requests, `http_application` answers them."""

import asyncio
import contextlib
import importlib
import os
import socket
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import Future
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.inference.http.http_application import HttpApplication
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.listener import Listener
from keras_deepseek.inference.server.engine import Engine
from keras_deepseek.inference.server.model_control import ModelControlMode
from keras_deepseek.inference.server.server import Serve, Server

if TYPE_CHECKING:
    import uvicorn
    from uvicorn.server import ServerState

    from keras_deepseek.inference.http.http_protocol import HttpProtocol

MAX_BODY_BYTES = 64 * 2**20
"""Larger requests are refused: 64 MiB of JSON should be sent in another form."""

_BACKLOG = 2048
_REFUSED = 32
"""Connections beyond `max_connections` that are told so. Further ones are closed at once."""
_LOOK_SECONDS = 0.01


class HttpServer(Server):
    """One HTTP server in front of an engine.

    `ServingEngine.serve` makes and starts one. Make one yourself for a second address or port.

    Args:
        engine: `ServingEngine`. Until it is ready, requests get the status 503.
        host: string. The address to listen at. Defaults to `"127.0.0.1"`: this machine alone.
        port: integer. `0` takes a free one. Defaults to `8501`.
        max_body_bytes: integer. Larger requests get the status 413, also if they are larger only
            after decompression. Defaults to 64 MiB (`67108864`).
        ssl_context: `ssl.SSLContext` of a server, for TLS. If its `verify_mode` is
            `ssl.CERT_REQUIRED`, clients without a trusted certificate are refused. Defaults to
            `None`: plain HTTP.
        limits: `HttpLimits`. Defaults to `None`: its defaults.
        tokens: sequence of strings, or a `pathlib.Path` of a file with one in each line. Requests
            must send one of them, as `Authorization: Bearer TOKEN`, except for `/`, `/healthz` and
            `/v2/health/...`. Defaults to `None`: no token is needed.
        access_log: boolean. If `True`, each request writes a line of JSON to the log
            `keras_deepseek.inference.access`. Defaults to `False`.
        traces: boolean, or OpenTelemetry's `TracerProvider`. If not `False`, each request is a
            span. `True` takes the provider of the process, or else one that the environment
            variables `OTEL_*` describe. Defaults to `False`.
        model_control: string. `"explicit"` lets clients load and unload models, with a token of
            `management_tokens`. Defaults to `"none"`: these calls are refused.
        management_tokens: As `tokens`, for the calls that load and unload models. They allow
            nothing else. Defaults to `None`.

    Example:

    >>> import keras
    >>> from keras_deepseek.inference import ServingEngine
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=1) as engine:
    ...     server = HttpServer(engine, port=0, max_body_bytes=100_000)
    ...     server.start()
    ...     print(server.ready)
    ...     server.stop()
    True
    """

    def __init__(  # noqa: PLR0913 - all options of a server.
        self,
        engine: Engine,
        host: str = "127.0.0.1",
        port: int = 8501,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        ssl_context: ssl.SSLContext | None = None,
        limits: HttpLimits | None = None,
        tokens: Sequence[str] | os.PathLike[str] | None = None,
        access_log: bool = False,
        traces: Any = False,
        model_control: ModelControlMode = "none",
        management_tokens: Sequence[str] | os.PathLike[str] | None = None,
    ) -> None:
        check_integer("max_body_bytes", max_body_bytes)
        if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
            raise InvalidInputError(
                "`ssl_context` must be an `ssl.SSLContext`, as `make_server_context` returns it, "
                f"or None; received {ssl_context!r}."
            )
        if not isinstance(limits, HttpLimits | None):
            raise InvalidInputError(
                "`limits` must be an `HttpLimits`, as in HttpLimits(idle_seconds=10), or None; "
                f"received {limits!r}."
            )
        super().__init__(
            engine,
            host,
            port,
            scheme="http",
            is_secure=ssl_context is not None,
            tokens=tokens,
            access_log=access_log,
            traces=traces,
            model_control=model_control,
            management_tokens=management_tokens,
        )
        self.max_body_bytes = max_body_bytes
        self.limits = limits or HttpLimits()
        self.application = HttpApplication(self)
        self._ssl_context = ssl_context

    def _prepare(self) -> Serve:
        try:
            import httptools  # noqa: F401 - uvicorn can do without, but slowly.
            import uvicorn
        except ImportError as error:
            name = error.name or "uvicorn"
            raise MissingExtraError(name, "serving", "to serve over HTTP") from error
        # Otherwise the first scrape, or the first request, imports it and blocks the event loop.
        for name in ("prometheus_client", "orjson"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        config = uvicorn.Config(
            self.application,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            proxy_headers=False,
        )
        config.load()
        return partial(self._serve, self._bind(_BACKLOG), config)

    async def _serve(
        self, listener: socket.socket, config: "uvicorn.Config", listens: "Future[int]"
    ) -> None:
        from uvicorn.server import ServerState

        from keras_deepseek.inference.http.http_protocol import HttpProtocol

        state, limits = ServerState(), self.limits
        connections = cast(set[HttpProtocol], state.connections)
        with listener:
            watching = asyncio.create_task(_watch(state, limits.tick_seconds))
            server = Listener(
                listener,
                lambda: HttpProtocol(self, config, state),
                self._ssl_context,
                limits.header_seconds,
                limits.linger_seconds,
                lambda: limits.max_connections + _REFUSED - len(connections),
            )
            server.start()
            listens.set_result(listener.getsockname()[1])
            await self.stopping.wait()
            for connection in connections:
                connection.shutdown(is_settled=False)
            await server.stop()
            await _drain(connections, limits)
            watching.cancel()


async def _watch(state: "ServerState", seconds: float) -> None:
    """Checks the times of all connections regularly, and sets the date of answers.

    A timer for each request would cost too much.
    """
    while True:
        state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
        for connection in list(state.connections):
            cast("HttpProtocol", connection).check_time()
        await asyncio.sleep(seconds)


async def _drain(connections: "set[HttpProtocol]", limits: HttpLimits) -> None:
    """Closes all connections. Those in use get time to finish first."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.grace_seconds
    await _wait_until_closed(connections, min(end, loop.time() + limits.settle_seconds))
    for connection in list(connections):
        connection.shutdown()
    await _wait_until_closed(connections, end)
    for connection in list(connections):
        connection.abort()
    await _wait_until_closed(connections, loop.time() + limits.linger_seconds)


async def _wait_until_closed(connections: "set[HttpProtocol]", end: float) -> None:
    """Returns when all connections are closed, or at the loop's time `end`."""
    loop = asyncio.get_running_loop()
    while connections and loop.time() < end:
        await asyncio.sleep(min(_LOOK_SECONDS, end - loop.time()))
