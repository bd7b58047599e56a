"""The messages between the HTTP server's connections and the application that answers them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from keras_deepseek.inference.monitoring.request_trace import RequestTrace

HUNG_UP = 499
"""The status in logs for a client that hung up before its answer. It is never sent."""


@dataclass(slots=True)
class HttpRequest:
    """A complete request.

    Args:
        path: Without the query, and with its percent escapes decoded.
        query: The text after the first `?`, not decoded.
        headers: Values by lower-case name. Values of a repeated name are joined by commas.
        body: Decompressed.
        client: The client's address.
        peer_subject: The subject of the client's certificate, as in `(("commonName", "client"),)`.
            Empty if it has none.
        is_old: True for HTTP/1.0.
        trace: Its notes for metrics and logs.
        route: The path template of its route. Empty until the route is found.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    client: str = ""
    peer_subject: tuple[tuple[str, str], ...] = ()
    keep_alive: bool = True
    is_old: bool = False
    trace: RequestTrace = field(default_factory=lambda: RequestTrace("http"), compare=False)
    route: str = ""


@dataclass(slots=True)
class HttpResponse:
    """An answer, with a status from 200 up and further headers."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Pending:
    """An answer that is not computed yet. The application's `answer_error` answers its errors.

    Args:
        start: Starts the computation. Its argument is a function that the event loop must call with
            the result, a `Request` of the model or a future. It returns a function that cancels the
            computation when the client has hung up.
        make_response: Makes the answer from the result.
    """

    start: Callable[[Callable[[Any], None]], Callable[[], None]]
    make_response: Callable[[Any], HttpResponse]


class HttpError(Exception):
    """A refused request, with a status from 400 up and a message for the client.

    `path` is set only if the request was refused before it was complete. Empty: it is unknown.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: tuple[tuple[str, str], ...] = (),
        *,
        path: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.path = path


class Application(Protocol):
    """The interface between a connection and the routes. All calls are made on the event loop."""

    def admit(self, request: HttpRequest) -> None:
        """Raises an `HttpError` if the client has no access. Its body is not decompressed then."""

    def handle(self, request: HttpRequest) -> HttpResponse | Pending:
        """Returns the answer to a request, or a `Pending`. Raises any exception."""

    def answer_error(self, error: Exception, path: str) -> HttpResponse:
        """Returns the answer for an error of a handler or the connection. It must not raise.

        `path` is that of the request, or empty if it is unknown.
        """

    def end(self, request: HttpRequest | None, response: HttpResponse | None) -> None:
        """Notes that an answer is about to be written, and may add headers. It must not raise.

        `request` is `None` if the bytes were no HTTP request, `response` if the client hung up
        before.
        """
