"""Requests, answers and errors, as the routes see them."""

import asyncio
import contextlib
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
)
from dataclasses import dataclass, field
from typing import Any, Protocol

from keras_deepseek.inference.monitoring.request_trace import RequestTrace

CLIENT_DISCONNECTED = 499
"""The status in logs for a client that hung up before its answer. It is never sent."""

Message = MutableMapping[str, Any]
"""An event of ASGI."""

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


EXTENSION = "keras_deepseek.exchange"
"""The key of an `Exchange` among the extensions in the scope of ASGI."""


class HttpError(Exception):
    """A refused request, with a status from 400 up and a message for the client."""

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class ClientDisconnectError(Exception):
    """The client hung up, so that nobody waits for the answer."""


class Exchange:
    """The things that this package's HTTP server tells its application of a request beyond ASGI.

    Args:
        refusal: The error of a request, or of the rest of its body: malformed, too slow, too large.
        descriptor: The socket's file descriptor, by which a batch notices that the client hung up.
        is_request: `False` if not even the head of a request could be read.
    """

    __slots__ = ("_callback", "cycle", "descriptor", "is_disconnected", "is_request", "refusal")

    def __init__(
        self, refusal: HttpError | None, descriptor: int | None, *, is_request: bool
    ) -> None:
        self._callback: Callable[[], object] | None = None
        self.refusal = refusal
        self.descriptor = descriptor
        self.is_request = is_request
        self.cycle: Any = None
        """uvicorn's object of the request."""
        self.is_disconnected = False
        """True if the client has closed the connection."""

    def call_on_disconnect(self, callback: Callable[[], object]) -> None:
        """Calls `callback` if the client hangs up, or at once if it has hung up."""
        self._callback = callback
        if self.is_disconnected:
            callback()

    def send_unframed(self, size: int) -> None:
        """Lets the next `size` bytes of a body go out as they are, and the connection end it.

        HTTP/1.0 has no chunks.
        """
        if self.cycle is not None:
            self.cycle.keep_alive = self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = size

    def disconnect(self) -> None:
        """Tells the application that the client has hung up."""
        self.is_disconnected = self.cycle.disconnected = True
        self.cycle.message_event.set()
        if self._callback is not None:
            self._callback()


async def _receive_nothing() -> Message:
    return {"type": "http.request"}


def _do_nothing() -> None:
    pass


@dataclass(slots=True)
class HttpRequest:
    """A request, whose body `read_body` and `stream_body` read.

    Args:
        path: The path without the query, and with its percent escapes decoded.
        headers: Values by lower-case name. Values of a repeated name are joined by commas.
        client: The client's address.
        version: The version of HTTP.
        scheme: `"http"` or `"https"`.
        server: The address and the port that the client has asked.
        root: The path at which another application mounts this one. Empty if none does.
        receive: ASGI's function, for the body.
        exchange: What this package's own server adds; `None` behind another server.
        trace: The record of the request for metrics, logs and traces.
        route: The path template of its route. Empty until the route is found.
        parameters: The parts of the path that stand in braces in the template, by their names.
        watcher: The task that waits for the client to hang up.
        callback: The function that it calls then.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    client: str = ""
    version: str = "1.1"
    scheme: str = "http"
    server: tuple[str, int | None] | None = None
    root: str = ""
    receive: Receive = field(default=_receive_nothing, compare=False)
    exchange: Exchange | None = field(default=None, compare=False)
    trace: RequestTrace = field(default_factory=lambda: RequestTrace("http"), compare=False)
    route: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    watcher: "asyncio.Task[None] | None" = field(default=None, compare=False)

    callback: Callable[[], object] = field(default=_do_nothing, compare=False)

    def call_on_disconnect(self, callback: Callable[[], object]) -> None:
        """Calls `callback` if the client hangs up before its answer. The body must be read.

        It replaces an earlier callback.
        """
        self.callback = callback
        if self.exchange is not None:
            self.exchange.call_on_disconnect(callback)
        elif self.watcher is None:
            self.watcher = asyncio.create_task(self._watch())
        elif self.watcher.done():
            callback()

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.callback()

    @contextlib.contextmanager
    def ends_on_disconnect(self) -> Iterator[None]:
        """Context manager that ends its block with a `ClientDisconnectError` on a hang-up.

        The body must be read.
        """
        task = asyncio.current_task()
        assert task is not None
        is_gone = is_running = False

        def end() -> None:
            nonlocal is_gone
            is_gone = True
            if is_running:
                task.cancel()

        self.call_on_disconnect(end)
        is_running = not is_gone
        try:
            if is_running:
                yield
        except asyncio.CancelledError:
            if not is_gone:
                raise
            task.uncancel()
        finally:
            self.call_on_disconnect(_do_nothing)
        if is_gone:
            raise ClientDisconnectError


class BodyStream(Protocol):
    """The pieces of a body that is sent while it is made. An asynchronous generator is one."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Ends it. It is called also if no piece was asked for."""


@dataclass(slots=True)
class HttpResponse:
    """An answer, with a status from 200 up and further headers.

    Args:
        stream: The pieces of a body that is sent while it is made, in the place of `body`. The next
            piece is asked for when the client has read most of the last ones. An error that the
            stream raises is its last piece, in the JSON of the route's errors.
        frame: Function that returns a piece of the stream as it is sent.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    stream: BodyStream | None = None
    frame: Callable[[bytes], bytes] = bytes
