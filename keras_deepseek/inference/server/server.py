"""The base class of the HTTP server and the gRPC server."""

import asyncio
import contextlib
import errno
import os
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any

from keras_deepseek.checks import check_boolean
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_address
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.monitoring.access_log import AccessLog
from keras_deepseek.inference.monitoring.request_traces import RequestTraces
from keras_deepseek.inference.server.engine import Engine
from keras_deepseek.inference.server.model_control import ModelControl, ModelControlMode
from keras_deepseek.inference.server.termination import wait_heeding_signals
from keras_deepseek.inference.server.tokens import TokenCheck, warn_of_strangers

NOT_READY = "The server is not ready: it is starting or stopping, or has no model."

Serve = Callable[["Future[int]"], Awaitable[None]]
"""Sets the future to the port that it listens at, then serves until `Server.stopping` is set."""


class Server(ABC):
    """A server in front of an engine, with its own thread and event loop.

    Port `0` takes a free one. `scheme` is that of its `url`, without the `s` of TLS. `tokens` and
    `traces` are the arguments of `TokenCheck` and `RequestTraces`, or `None` and `False` for none;
    `model_control` and `management_tokens` those of `ModelControl`.
    """

    def __init__(
        self,
        engine: Engine,
        host: str,
        port: int,
        *,
        scheme: str,
        is_secure: bool,
        tokens: Sequence[str] | os.PathLike[str] | None,
        access_log: bool,
        traces: Any,
        model_control: ModelControlMode,
        management_tokens: Sequence[str] | os.PathLike[str] | None,
    ) -> None:
        check_address(host, port)
        check_boolean("access_log", access_log)
        self.engine = engine
        self.host = host
        self.port = port
        self.tokens = None if tokens is None else TokenCheck(tokens)
        self.access_log = AccessLog() if access_log else None
        self.traces = RequestTraces(traces) if traces else None
        self.model_control = ModelControl(model_control, management_tokens)
        self.is_unready = False
        self.is_stopping = False
        self.stopping = asyncio.Event()
        self._scheme = scheme
        self._is_secure = is_secure
        self._thread: threading.Thread | None = None
        self.ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def target(self) -> str:
        """The address without the scheme, as in `"127.0.0.1:8500"`."""
        return join_address(self.host, self.port)

    @property
    def url(self) -> str:
        """The address that clients use, as in `"http://127.0.0.1:8501"`."""
        return f"{self._scheme}{'s' if self._is_secure else ''}://{self.target}"

    @property
    def ready(self) -> bool:
        """True if health checks may say so.

        There is a model, and neither server nor engine is starting or stopping. Requests that come
        to a stopping server all the same are answered.
        """
        engine = self.engine
        has_model = any(served.versions for served in engine.models.values())
        return engine.ready and has_model and not self.is_unready and not self.is_stopping

    def start(self) -> None:
        """Starts the server's thread. Returns when the server listens."""
        serve = self._prepare()
        listens: Future[int] = Future()
        thread = threading.Thread(
            target=self._run, args=(serve, listens), name=self._scheme, daemon=True
        )
        self.ended.clear()
        thread.start()
        self._thread = thread
        try:
            self.port = listens.result()
            if self.tokens is None and not self._is_secure:
                warn_of_strangers(self.host)
        except BaseException:  # After a signal, or a warning as an error, the server runs.
            self.stop()
            raise

    def announce_unready(self) -> None:
        """Lets health checks fail, so that clients turn to other servers. All else is answered."""
        self.is_unready = True

    def wait(self) -> None:
        """Blocks until the server has stopped."""
        if self._thread is not None:
            # In Python 3.11 a thread counts as ended if a signal interrupts `join`.
            wait_heeding_signals(self.ended)
            self._thread.join()

    def stop(self) -> None:
        """Answers the requests on open connections, closes these, and frees the port.

        Requests that are not answered within the server's `grace_seconds` are dropped.
        """
        self.is_stopping = True
        if self._loop is not None:
            call_in(self._loop, self.stopping.set)
        self.wait()
        for notes in (self.access_log, self.traces):
            if notes is not None:
                notes.close()

    def check_ready(self, model: str) -> None:
        """Raises `ClosedError` if the engine is starting or stopping."""
        if not self.engine.ready:
            raise ClosedError(f"The model {model!r} is not ready: it is starting or stopping.")

    @abstractmethod
    def _prepare(self) -> Serve:
        """Prepares the server, and returns the function that serves.

        Raises an error if the server can't start.
        """

    def _bind(self, backlog: int | None = None) -> socket.socket:
        """Binds and returns the listening socket."""
        return listen(self.host, self.port, backlog)

    def _run(self, serve: Serve, listens: "Future[int]") -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            if self.is_stopping:  # `stop` was called before the loop existed.
                self.stopping.set()
            await serve(listens)

        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(run())
        except BaseException as error:
            if listens.done():
                raise
            listens.set_exception(error)
        finally:
            self.ended.set()


def listen(host: str, port: int, backlog: int | None = None) -> socket.socket:
    """Binds and returns a listening socket. That of `::` takes IPv4, too.

    Raises an error with the system's message and advice.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    takes_both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port), family=family, backlog=backlog, dualstack_ipv6=takes_both
        )
    except OSError as error:
        raise no_address(host, port, error) from error


def no_address(host: str, port: int, error: Exception) -> InvalidInputError:
    """Returns the error for an address at which nothing can listen, with advice."""
    of_port = (errno.EADDRINUSE, errno.EACCES)
    is_of_host = isinstance(error, OSError) and error.errno not in of_port
    advice = (
        "Choose an address of this machine, as 127.0.0.1, or 0.0.0.0 for all of them."
        if is_of_host
        else "Choose another port, or 0 for a free one."
    )
    return InvalidInputError(f"Can't listen at {host!r} on port {port}: {error}. {advice}")


def join_address(host: str, port: int) -> str:
    """Returns an address, as in `"127.0.0.1:8500"`, with brackets around one of IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Returns the factory of uvloop's event loop, or `None` for Python's if uvloop is missing."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Calls a function in an event loop of another thread. Does nothing if the loop is closed."""
    with contextlib.suppress(RuntimeError):  # The loop is closed: all that ran in it has stopped.
        loop.call_soon_threadsafe(function)


def stop_servers(servers: Sequence[Server]) -> None:
    """Stops servers at the same time: each waits for its own requests."""
    stopping = [threading.Thread(target=server.stop) for server in servers]
    for thread in stopping:
        thread.start()
    for thread in stopping:
        thread.join()
