"""What the servers of HTTP and of gRPC share: an address, a thread of its own, and its end.

`http_server` and `grpc_server` say what is spoken there.
"""

import asyncio
import errno
import os
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_address
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.monitoring.access_log import AccessLog
from keras_deepseek.inference.monitoring.request_traces import RequestTraces
from keras_deepseek.inference.server.engine import Engine
from keras_deepseek.inference.server.event_loop import call_in, loop_factory
from keras_deepseek.inference.server.termination import wait_heeding_signals
from keras_deepseek.inference.server.tokens import TokenCheck, warn_of_strangers

Serve = Callable[["Future[int]"], Awaitable[None]]
"""Serves until `Server.stopping` is set, having told the port that it listens at."""


class Server(ABC):
    """A server in front of an engine, with an event loop of its own.

    Args:
        engine: `ServingEngine`.
        host: string. The address to listen at.
        port: integer. `0` takes a free one.
        scheme: string. What its `url` begins with.
        is_secure: boolean. Whether it speaks TLS: the scheme has an `s` more then.
        tokens: What `TokenCheck` takes, or `None`: anyone may ask.
        access_log: boolean. Whether each request is logged.
        traces: What `RequestTraces` takes, or `False`: none are made.
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
    ) -> None:
        check_address(host, port)
        self.engine = engine
        self.host = host
        self.port = port
        self.tokens = None if tokens is None else TokenCheck(tokens)
        self.access_log = AccessLog() if access_log else None
        self.traces = RequestTraces(traces) if traces else None
        self.is_stopping = False
        self.stopping = asyncio.Event()
        self._scheme = scheme
        self._is_secure = is_secure
        self._thread: threading.Thread | None = None
        self.ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def target(self) -> str:
        """The address without what is spoken there, as in `"127.0.0.1:8500"`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address that clients use, as in `"http://127.0.0.1:8501"`."""
        return f"{self._scheme}{'s' if self._is_secure else ''}://{self.target}"

    @property
    def ready(self) -> bool:
        """Whether requests are answered: neither the server nor the engine starts or stops."""
        return self.engine.ready and not self.is_stopping

    def start(self) -> None:
        """Returns when the server listens.

        Raises:
            InvalidInputError: The port is taken, or the address is none of this machine's, or its
                TLS can't be used.
            MissingExtraError: The packages that speak its protocol are not installed.
        """
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
        except BaseException:  # It may be a signal, or the warning: then it runs.
            self.stop()
            raise

    def wait(self) -> None:
        """Returns when the server has stopped."""
        if self._thread is not None:
            # Python 3.11 takes a thread for ended when a signal interrupts `join`.
            wait_heeding_signals(self.ended)
            self._thread.join()

    def stop(self) -> None:
        """Becomes unready, answers the requests in flight, and returns when the port is free.

        What is still in flight after the server's `grace_seconds` is dropped.
        """
        self.is_stopping = True
        if self._loop is not None:
            call_in(self._loop, self.stopping.set)
        self.wait()
        for notes in (self.access_log, self.traces):
            if notes is not None:
                notes.close()

    def check_ready(self, model: str) -> None:
        """Refuses a request that can't be answered, yet or any more.

        Args:
            model: string. The name of the model that is asked for.

        Raises:
            ClosedError: The server, or its engine, starts or stops.
        """
        if not self.ready:
            raise ClosedError(f"The model {model!r} is not ready: it is starting or stopping.")

    @abstractmethod
    def _prepare(self) -> Serve:
        """Returns what serves, or says why nothing can."""

    def _bind(self, backlog: int | None = None) -> socket.socket:
        """Returns a socket that listens, or refuses the address in the system's own words."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=backlog)
        except OSError as error:
            raise self._no_address(error) from error

    def _no_address(self, error: Exception) -> InvalidInputError:
        of_port = (errno.EADDRINUSE, errno.EACCES)
        is_of_host = isinstance(error, OSError) and error.errno not in of_port
        advice = (
            "Choose an address of this machine, as in 127.0.0.1, or 0.0.0.0 for all of them."
            if is_of_host
            else "Choose another port, or 0 for a free one."
        )
        return InvalidInputError(
            f"Can't listen at {self.host!r} on port {self.port}: {error}. {advice}"
        )

    def _run(self, serve: Serve, listens: "Future[int]") -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            if self.is_stopping:  # It was told so when there was no loop yet.
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


def stop_servers(servers: Sequence[Server]) -> None:
    """Stops servers at one time: each waits for its own requests."""
    stopping = [threading.Thread(target=server.stop) for server in servers]
    for thread in stopping:
        thread.start()
    for thread in stopping:
        thread.join()
