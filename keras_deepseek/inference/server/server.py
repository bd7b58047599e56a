"""The base class of the HTTP server and the gRPC server, and the wait for their end."""

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future

from keras_deepseek.artifacts.network_address import join_address
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.dispatcher import Dispatcher
from keras_deepseek.inference.server.service import Service
from keras_deepseek.inference.server.termination import Interruption, wait_heeding_signals
from keras_deepseek.inference.server.tokens import warn_of_strangers

NOT_READY = "The server is not ready: it is starting or stopping, or has no model."

COLLECTION_OBJECTS = 20_000
"""More than the requests have that fit in the time that a full queue may take."""

_logger = logging.getLogger(__name__)

Serve = Callable[["Future[int]"], Awaitable[None]]
"""Sets the future to the port that it listens at, then serves until `Server.stopping` is set."""


class Server(ABC):
    """A server that listens for a service, with its own thread and event loop.

    Port `0` takes a free port. `scheme` is the scheme of `url`, without the `s` of TLS.
    """

    def __init__(self, service: Service, port: int, *, scheme: str, is_secure: bool) -> None:
        if service.has_server:
            raise InvalidInputError(
                "The `Service` has a server already. Make another one of the same engine and "
                "options."
            )
        service.has_server = True
        self.service = service
        self.host = service.options.host
        self.port = port
        self.stopping = asyncio.Event()
        self.ended = threading.Event()
        self._scheme = scheme
        self._is_secure = is_secure
        self._thread: threading.Thread | None = None
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
        """True if health checks may answer that the server is ready (`Service.ready`)."""
        return self.service.ready

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
            self.service.address = (self.host, self.port)
            if not self._is_secure:
                warn_of_strangers(self.host, has_tokens=self.service.tokens is not None)
        except BaseException:  # After a signal, or a warning as an error, the server runs.
            self.stop()
            raise

    def announce_unready(self) -> None:
        """Lets health checks fail, so that clients turn to other servers. All else is answered."""
        self.service.is_unready = True

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
        self.service.is_stopping = True
        if self._loop is not None:
            call_in(self._loop, self.stopping.set)
        self.wait()
        self.service.close()

    @abstractmethod
    def _prepare(self) -> Serve:
        """Prepares the server, and returns the function that serves.

        Raises an error if the server can't start.
        """

    def _run(self, serve: Serve, listens: "Future[int]") -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            if self.service.is_stopping:  # `stop` was called before the loop existed.
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
    """Binds and returns a listening socket. A socket at `::` takes IPv4, too.

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


def describe_servers(engine: Dispatcher, servers: Sequence[Server]) -> str:
    """Returns a line with the names of the models and the URLs of an HTTP and a gRPC server."""
    http, *other_servers = servers
    texts = engine.text_versions()
    has_chat = any(version.has_chat for version in texts)
    path = "/v1/completions" if texts else f"/v1/models/{engine.name}"
    path = "/v1/chat/completions" if has_chat else path
    path = "" if len(engine.models) > 1 else path
    urls = [http.url + path, *(server.url for server in other_servers)]
    chat = f"; to chat: {http.url}/chat" if has_chat else ""
    return f"Serving {', '.join(map(repr, engine.models))} at {' and '.join(urls)}{chat}"


def wait_until_stopped(
    servers: Sequence[Server],
    line: str,
    interruption: Interruption,
    live_line: contextlib.AbstractContextManager[object] | None = None,
) -> None:
    """Prints a line. Returns when the servers have ended, or raises after a signal."""
    seconds = servers[0].service.limits.unready_seconds
    with (
        _rare_collections(),
        _unready_after_signal(servers, seconds, interruption),
        live_line or contextlib.nullcontext(),
    ):
        print(line, flush=True)
        # It also raises for a signal that was lost during an import.
        interruption.wait(servers[0].ended)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Context manager in which garbage is collected rarely, for a process that only serves.

    By default the objects of one batch of requests start a collection, though they are no garbage.
    Every hundredth may look at all objects of the process, and nobody is answered for 50 ms.
    """
    objects, *older_thresholds = gc.get_threshold()
    gc.set_threshold(objects and max(objects, COLLECTION_OBJECTS), *older_thresholds)
    try:
        yield
    finally:
        gc.set_threshold(objects, *older_thresholds)


@contextlib.contextmanager
def _unready_after_signal(
    servers: Sequence[Server], seconds: float, interruption: Interruption
) -> Iterator[None]:
    """Context manager that makes servers unready for some seconds when a signal ends its block.

    The next signal ends that time.
    """
    try:
        yield
    except KeyboardInterrupt:
        _logger.info("A signal has come. Unready for %g s, then requests in flight end.", seconds)
        for server in servers:
            server.announce_unready()
        interruption.wait_for_another(servers[0].ended, seconds)
        raise
