"""The HTTP server. `http_protocol` reads the requests, `http_application` answers them."""

import asyncio
import contextlib
import importlib
import socket
import time
from concurrent.futures import Future
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, cast

from keras_deepseek.errors import MissingExtraError
from keras_deepseek.inference.http.http_application import HttpApplication
from keras_deepseek.inference.http.listener import Listener
from keras_deepseek.inference.server.server import Serve, Server, listen
from keras_deepseek.inference.server.service import Service

if TYPE_CHECKING:
    import uvicorn
    from uvicorn.server import ServerState

    from keras_deepseek.inference.http.http_protocol import HttpProtocol

_BACKLOG = 2048
_REFUSED = 32
"""Connections beyond `max_connections` that are told so. Further ones are closed at once."""
_LOOK_SECONDS = 0.01
_END_SECONDS = 0.2
"""For streamed answers to say that the server stops."""


class HttpServer(Server):
    """An HTTP server that listens for a service.

    `ServingEngine.serve` makes and starts one. Make one yourself for a second address or port.

    Args:
        service: `Service`, which no other server has. Its `ServerOptions` say where it listens.

    Example:

    >>> import keras
    >>> from keras_deepseek.inference import ServerOptions, Service, ServingEngine
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=1) as engine:
    ...     server = HttpServer(Service(engine, ServerOptions(http_port=0)))
    ...     server.start()
    ...     print(server.ready)
    ...     server.stop()
    True
    """

    def __init__(self, service: Service) -> None:
        options = service.options
        is_secure = options.ssl_context is not None
        super().__init__(service, options.http_port, scheme="http", is_secure=is_secure)
        self.application = HttpApplication(service)

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
        return partial(self._serve, listen(self.host, self.port, _BACKLOG), config)

    async def _serve(
        self, listener: socket.socket, config: "uvicorn.Config", listens: "Future[int]"
    ) -> None:
        from uvicorn.server import ServerState

        from keras_deepseek.inference.http.http_protocol import HttpProtocol

        state, limits = ServerState(), self.service.limits
        connections = cast(set[HttpProtocol], state.connections)
        with listener:
            watching = asyncio.create_task(_watch(state, limits.tick_seconds))
            server = Listener(
                listener,
                lambda: HttpProtocol(self.application, config, state),
                self.service.options.ssl_context,
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
            await _drain(connections, self.service)
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


async def _drain(connections: "set[HttpProtocol]", service: Service) -> None:
    """Closes all connections. Those in use get time to finish first.

    Streamed answers that are not whole by then end with an error.
    """
    loop, limits = asyncio.get_running_loop(), service.limits
    end = loop.time() + limits.grace_seconds
    await _wait_until_closed(connections, min(end, loop.time() + limits.settle_seconds))
    for connection in list(connections):
        connection.shutdown()
    await _wait_until_closed(connections, end)
    service.end_streams()
    await _wait_until_closed(connections, loop.time() + min(limits.linger_seconds, _END_SECONDS))
    for connection in list(connections):
        connection.abort()
    await _wait_until_closed(connections, loop.time() + limits.linger_seconds)


async def _wait_until_closed(connections: "set[HttpProtocol]", end: float) -> None:
    """Returns when all connections are closed, or at the loop's time `end`."""
    loop = asyncio.get_running_loop()
    while connections and loop.time() < end:
        await asyncio.sleep(min(_LOOK_SECONDS, end - loop.time()))
