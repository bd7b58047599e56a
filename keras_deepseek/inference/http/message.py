"""Requests, answers and errors, as the routes see them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

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

    def disconnect(self) -> None:
        """Tells the application that the client has hung up."""
        self.is_disconnected = self.cycle.disconnected = True
        self.cycle.message_event.set()
        if self._callback is not None:
            self._callback()


async def _receive_nothing() -> Message:
    return {"type": "http.request"}


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

    def call_on_disconnect(self, callback: Callable[[], object]) -> None:
        """Calls `callback` if the client hangs up before its answer. The body must be read."""
        if self.exchange is not None:
            self.exchange.call_on_disconnect(callback)
        else:
            self.watcher = asyncio.create_task(self._watch(callback))

    async def _watch(self, callback: Callable[[], object]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        callback()


@dataclass(slots=True)
class HttpResponse:
    """An answer, with a status from 200 up and further headers."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
