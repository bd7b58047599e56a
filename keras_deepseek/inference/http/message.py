"""What goes between the HTTP server's connections and the application that answers them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from keras_deepseek.inference.monitoring.request_trace import RequestTrace

HUNG_UP = 499
"""What web servers write in their logs for a client that did not wait; nobody is sent it."""


@dataclass(slots=True)
class HttpRequest:
    """One request, read to its end.

    Args:
        method: string. Upper case, as in `"POST"`.
        path: string. Without the query, and with its percent escapes decoded.
        query: string. What follows the first `?`, as it came.
        headers: dict. Values by lower-case name; those of a repeated name are joined by commas.
        body: bytes. Inflated, where it came compressed.
        client: string. The address of the other end.
        peer_subject: tuple of (name, value) pairs, as in `(("commonName", "client"),)`: the subject
            of the certificate that the client proved to hold. Empty where it showed none.
        keep_alive: boolean. Whether the client will send more on this connection.
        is_old: boolean. Whether it speaks HTTP/1.0.
        trace: `RequestTrace`. Its notes for metrics and logs.
        route: string. The path template of its route, as in `"/v2/models/{name}/infer"`. Empty
            until the route is found.
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
    """An answer.

    Args:
        status: integer, from 200 up.
        body: bytes.
        content_type: string.
        headers: tuple of (name, value) pairs: further headers.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Pending:
    """An answer that has to be computed.

    Args:
        start: function that begins it. It takes the function that the server's loop is to call
            with what is finished, a `Request` of the model or a future of other work, and returns
            one that cancels it: the client hung up.
        make_response: function from what is finished to an `HttpResponse`.

    What either raises is answered by `Application.answer_error`.
    """

    start: Callable[[Callable[[Any], None]], Callable[[], None]]
    make_response: Callable[[Any], HttpResponse]


class HttpError(Exception):
    """A request that is refused.

    Args:
        status: integer, from 400 up.
        message: string. For the client.
        headers: tuple of (name, value) pairs, for the answer.
    """

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class Application(Protocol):
    """What a server needs to know about its routes. All calls are made on the event loop."""

    def admit(self, request: HttpRequest) -> None:
        """Raises an `HttpError` where the client may not ask; its body is not inflated then."""

    def handle(self, request: HttpRequest) -> HttpResponse | Pending:
        """Returns the answer to a request, now or later, or raises any exception."""

    def answer_error(self, error: Exception) -> HttpResponse:
        """Returns the answer that tells a client of an error. It must not raise.

        Args:
            error: What `handle` or `make_response` raised, or an `HttpError` of the server.
        """

    def end(self, request: HttpRequest | None, response: HttpResponse | None) -> None:
        """Notes that an answer is about to be written, and may add headers. It must not raise.

        Args:
            request: `HttpRequest`, or `None` where what came was none.
            response: `HttpResponse`, or `None` where the client hung up before it was there.
        """
