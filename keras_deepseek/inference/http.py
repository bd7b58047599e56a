"""Listens for HTTP on a thread of its own.

`http_connection` speaks with each client; what the paths answer stands in `http_application`.
"""

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from keras_deepseek.artifacts.errors import InvalidInputError, MissingExtraError
from keras_deepseek.inference.access_log import AccessLog
from keras_deepseek.inference.arguments import check_address
from keras_deepseek.inference.event_loop import call_in, loop_factory
from keras_deepseek.inference.http_limits import HttpLimits
from keras_deepseek.inference.listener import Listener
from keras_deepseek.inference.open_connections import OpenConnections
from keras_deepseek.inference.termination import wait_heeding_signals
from keras_deepseek.inference.tokens import TokenCheck, warn_of_strangers

if TYPE_CHECKING:
    from keras_deepseek.inference.engine import ServingEngine

MAX_BODY_BYTES = 64 * 2**20
"""Larger requests are refused: a tensor of 64 MiB of JSON wants another protocol."""

_BACKLOG = 2048


class HttpServer:
    """One HTTP server in front of an engine.

    `ServingEngine.serve` makes and starts one; make it yourself to choose `max_body_bytes`.

    Args:
        engine: `ServingEngine`. Until it is ready, requests are answered with the status 503.
        host: string. The address to listen at. Defaults to `"127.0.0.1"`: this machine alone.
        port: integer. `0` takes a free one. Defaults to `8501`.
        max_body_bytes: integer. Larger requests are answered with the status 413, also those that
            come compressed and would be inflated to more. Defaults to 64 MiB (`67108864`).
        ssl_context: `ssl.SSLContext` of a server, to speak TLS. Where its `verify_mode` is
            `ssl.CERT_REQUIRED`, clients without a certificate that it trusts are turned away.
            Defaults to `None`: plain HTTP.
        limits: `HttpLimits`. Defaults to `None`: its own defaults.
        tokens: sequence of strings, or a `pathlib.Path` of a file with one in each line. Requests
            must show one of them, as `Authorization: Bearer TOKEN`, but those for `/`, `/healthz`
            and `/v2/health/...`. Defaults to `None`: anyone may ask.
        access_log: boolean. Whether each request is a line of JSON in the log
            `keras_deepseek.inference.access`. Defaults to `False`.

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

    def __init__(
        self,
        engine: "ServingEngine",
        host: str = "127.0.0.1",
        port: int = 8501,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        ssl_context: ssl.SSLContext | None = None,
        limits: HttpLimits | None = None,
        tokens: Sequence[str] | os.PathLike[str] | None = None,
        access_log: bool = False,
    ) -> None:
        check_address(host, port)
        if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
            raise InvalidInputError(
                f"Received ssl_context={ssl_context!r}. Expected an `ssl.SSLContext` or `None`."
            )
        self.engine = engine
        self.host = host
        self.port = port
        self.max_body_bytes = max_body_bytes
        self.limits = limits or HttpLimits()
        self.tokens = None if tokens is None else TokenCheck(tokens)
        self.access_log = AccessLog() if access_log else None
        self._ssl_context = ssl_context
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        # The second is known when the first is set: the thread has begun.
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._tell_to_stop: Callable[[], object] = _do_nothing

    @property
    def url(self) -> str:
        """The address that clients use, as in `"http://127.0.0.1:8501"`."""
        scheme = "http" if self._ssl_context is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @property
    def ready(self) -> bool:
        """Whether requests are answered: neither the server nor the engine starts or stops."""
        return self.engine.ready and not self._is_stopping

    def start(self) -> None:
        """Returns when the server listens.

        Raises:
            InvalidInputError: The port is taken, or the address is none of this machine's.
            MissingExtraError: The packages of the extra `serving` are not installed.
        """
        make_protocol = self._prepare()
        listener = self._listen()
        self.port = listener.getsockname()[1]
        if self.tokens is None and self._ssl_context is None:
            warn_of_strangers(self.host)
        self._thread = threading.Thread(
            target=self._run, args=(make_protocol, listener), name="http", daemon=True
        )
        self._ended.clear()
        self._thread.start()

    def wait(self) -> None:
        """Returns when the server has stopped."""
        if self._thread is not None:
            # Python 3.11 takes a thread for ended when a signal interrupts `join`.
            wait_heeding_signals(self._ended)
            self._thread.join()

    def stop(self) -> None:
        """Becomes unready, answers the requests in flight, and returns when the port is free.

        Clients that keep their connection are told `Connection: close` with their next answer.
        After `limits.grace_seconds` what is still in flight is dropped.
        """
        self._is_stopping = True
        if self._thread is not None:
            self._begun.wait()
            self._tell_to_stop()
        self.wait()

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise InvalidInputError(
                f"Can't listen at {self.host!r} on port {self.port}: {error}. "
                "Choose another port, or 0 for a free one."
            ) from error

    def _prepare(self) -> Callable[[OpenConnections], asyncio.Protocol]:
        """Returns what makes the protocol of a connection."""
        try:
            import httptools  # noqa: F401 - The next import needs it.
        except ImportError as error:
            raise MissingExtraError("httptools", "serving", "to serve over HTTP") from error
        from keras_deepseek.inference.http_application import HttpApplication
        from keras_deepseek.inference.http_connection import HttpConnection

        application = HttpApplication(self)
        return lambda connections: HttpConnection(
            application, connections, self.max_body_bytes, self.limits
        )

    def _run(
        self, make_protocol: Callable[[OpenConnections], asyncio.Protocol], listener: socket.socket
    ) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._serve(make_protocol, listener))
        finally:
            listener.close()
            self._begun.set()
            self._ended.set()

    async def _serve(
        self, make_protocol: Callable[[OpenConnections], asyncio.Protocol], listener: socket.socket
    ) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        connections = OpenConnections(self.limits)
        connections.watch()
        server = Listener(
            listener,
            lambda: make_protocol(connections),
            self._ssl_context,
            self.limits.header_seconds,
            self.limits.linger_seconds,
        )
        server.start()
        self._tell_to_stop = lambda: call_in(loop, stop.set)
        self._begun.set()
        await stop.wait()
        connections.start_draining()
        await server.stop()
        await connections.drain()


def _do_nothing() -> None:
    """Stands for what a server that never began to listen is told."""
