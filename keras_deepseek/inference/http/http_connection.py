"""One HTTP/1.1 connection: requests come in by `http_reader`, answers go out by `writer`.

The application answers at once or later; no task is made for either. This module ends connections
of clients that misbehave: that send malformed data, send or read slowly, or send after the end.
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from keras_deepseek.inference.http.body import inflate_body
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.http_reader import BODY, HEAD, IDLE, HttpReader
from keras_deepseek.inference.http.message import (
    Application,
    HttpError,
    HttpRequest,
    HttpResponse,
    Pending,
)
from keras_deepseek.inference.http.writer import CONTINUE, encode_response

if TYPE_CHECKING:
    from keras_deepseek.inference.http.open_connections import OpenConnections

_PROBES = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""They find a client whose machine is gone after a minute and a half, also during a request."""


class _Exchange:
    """One HTTP request of a connection, with its response."""

    __slots__ = ("cancel", "connection", "make_response", "must_close", "request", "response")

    def __init__(self, connection: "HttpConnection", request: HttpRequest | None) -> None:
        self.connection = connection
        self.request = request
        self.must_close = request is None or not request.keep_alive
        self.cancel: Callable[[], None] | None = None
        self.make_response: Callable[[Any], HttpResponse] | None = None
        self.response: HttpResponse | None = None

    def finish(self, finished: Any) -> None:
        """Makes the response from the finished computation."""
        self.connection.finish(self, finished)


class HttpConnection(asyncio.Protocol):
    """The protocol of one connection, which the event loop calls.

    `connections` calls `check_time`. Bodies above `max_body_bytes`, received or decompressed, are
    refused with 413.
    """

    def __init__(
        self,
        application: Application,
        connections: "OpenConnections",
        max_body_bytes: int,
        limits: HttpLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._application = application
        self._connections = connections
        self._max_body_bytes = max_body_bytes
        self._limits = limits
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._descriptor: int | None = None
        self._reader = HttpReader(limits, max_body_bytes)
        # In the order of the requests. The answer of the first is the next to be written.
        self._exchanges: deque[_Exchange] = deque()
        self._waiting: deque[HttpRequest | HttpError] = deque()
        self._steps = 0
        self._since = clock()
        """The time when the reader's phase last changed, or the last answer was given."""
        self._unsent = 0
        self._unsent_since = self._since
        self._is_reading_paused = False
        self._is_writing_paused = False
        self._is_draining = False
        self._is_lingering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins with a new connection, after the TLS handshake if there is one."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._reader.client = str(peer[0]) if peer else ""
        self._reader.peer_subject = _read_subject(transport.get_extra_info("peercert"))
        self._since = self._clock()
        connection = transport.get_extra_info("socket")
        probe_dead_peers(connection)
        self._descriptor = None if connection is None else connection.fileno()
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Reads bytes, and starts the requests that they complete."""
        reader = self._reader
        for received in reader.feed(data):
            if self._is_full():
                self._waiting.append(received)
                self._pause_reading()
            else:
                self._start(received)
        if reader.steps != self._steps:
            self._steps = reader.steps
            self._since = self._clock()
        if reader.wants_continue:
            self._tell_to_continue()

    def eof_received(self) -> bool:
        """Drops the requests of a client that has closed the connection or its sending half."""
        self._is_lingering = True
        self._since = self._clock()
        self._drop_requests()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Drops the requests of a closed connection."""
        self._transport = None
        self._drop_requests()
        self._connections.remove(self)

    def pause_writing(self) -> None:
        """Stops reading while the client reads its answers too slowly."""
        self._is_writing_paused = True
        self._pause_reading()

    def resume_writing(self) -> None:
        """Resumes reading after the client has read enough answers."""
        self._is_writing_paused = False
        self._start_waiting()

    def finish(self, exchange: _Exchange, finished: Any) -> None:
        """Answers a request with `finished`, the argument of `Pending.make_response`."""
        if exchange.make_response is None:
            return  # The client has hung up.
        try:
            exchange.response = exchange.make_response(finished)
        except Exception as error:  # noqa: BLE001 - The application tells the client and the log.
            path = "" if exchange.request is None else exchange.request.path
            exchange.response = self._application.answer_error(error, path)
        self._write_answers()
        if self._waiting or self._is_reading_paused:
            self._start_waiting()

    def start_draining(self) -> None:
        """Lets the connection close after the answer to its last request."""
        self._is_draining = True

    def close_if_idle(self) -> None:
        """Closes the connection unless a request is being read or answered."""
        if self._is_quiet() and not self._is_lingering and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drops the connection and all unsent bytes."""
        if self._transport is not None:
            self._transport.abort()

    def check_time(self) -> None:
        """Closes the connection if a read, a write or an idle time exceeds its limit."""
        transport, now, limits = self._transport, self._clock(), self._limits
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent:
            self._unsent_since = now
        self._unsent = unsent
        waited = now - self._since
        if unsent:
            if now - self._unsent_since > limits.write_seconds:
                transport.abort()
        elif self._is_lingering:
            if waited > limits.linger_seconds:
                transport.abort()
        elif self._is_reading_paused:
            self._since = now
        elif self._is_reading_slow(waited):
            path = self._reader.path
            self._reader.stop()
            self._start(HttpError(408, "The request took too long to come.", path=path))
        elif self._is_unused(waited):
            transport.close()

    def _is_reading_slow(self, waited: float) -> bool:
        limits, reader = self._limits, self._reader
        if reader.phase == HEAD:
            return waited > limits.header_seconds
        earned = reader.body_bytes / limits.min_body_rate
        return reader.phase == BODY and waited > limits.body_seconds + earned

    def _is_unused(self, waited: float) -> bool:
        if self._exchanges or self._reader.phase != IDLE:
            return False
        is_new = self._reader.steps == 0
        return waited > (self._limits.header_seconds if is_new else self._limits.idle_seconds)

    def _is_full(self) -> bool:
        return self._is_writing_paused or len(self._exchanges) >= self._limits.max_pipelined

    def _start(self, received: HttpRequest | HttpError) -> None:
        """Gives a request to the application. Its answer may come later."""
        exchange = _Exchange(self, None if isinstance(received, HttpError) else received)
        self._exchanges.append(exchange)
        try:
            answer = self._ask(received)
            if isinstance(answer, Pending):
                exchange.make_response = answer.make_response
                exchange.cancel = answer.start(exchange.finish)
                return
        except Exception as error:  # noqa: BLE001 - The application tells the client and the log.
            answer = self._application.answer_error(error, received.path)
        exchange.response = answer
        self._write_answers()

    def _ask(self, received: HttpRequest | HttpError) -> HttpResponse | Pending:
        if isinstance(received, HttpError):
            raise received
        received.trace.connection = self._descriptor
        self._application.admit(received)
        encoding = received.headers.get("content-encoding")
        if encoding is not None:
            received.body = inflate_body(received.body, encoding, self._max_body_bytes)
        return self._application.handle(received)

    def _start_waiting(self) -> None:
        """Starts requests that waited for a free place, then resumes reading."""
        while self._waiting and not self._is_full():
            self._start(self._waiting.popleft())
        if self._is_reading_paused and not self._waiting and not self._is_full():
            self._is_reading_paused = False
            self._since = self._clock()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def _pause_reading(self) -> None:
        transport = self._transport
        if not self._is_reading_paused and transport is not None and not transport.is_closing():
            self._is_reading_paused = True
            transport.pause_reading()

    def _write_answers(self) -> None:
        """Writes the finished answers, in the order of their requests."""
        exchanges = self._exchanges
        while exchanges and exchanges[0].response is not None:
            self._write(exchanges.popleft())
        if not exchanges:
            self._since = self._clock()
            if self._reader.wants_continue:
                self._tell_to_continue()

    def _write(self, exchange: _Exchange) -> None:
        transport, request, response = self._transport, exchange.request, exchange.response
        if transport is None or transport.is_closing() or response is None:
            self._application.end(request, None)
            return
        self._application.end(request, response)
        is_last = exchange.must_close or (self._is_draining and self._is_quiet())
        word = "close" if is_last else "keep-alive" if request and request.is_old else None
        pieces = encode_response(
            response, word, with_body=request is None or request.method != "HEAD"
        )
        for piece in pieces:
            transport.write(piece)
        if is_last:
            if request is not None and not request.keep_alive:
                transport.close()  # The client announced that it sends nothing more.
            else:
                self._linger(transport)

    def _is_quiet(self) -> bool:
        return not self._exchanges and not self._waiting and self._reader.phase == IDLE

    def _linger(self, transport: asyncio.Transport) -> None:
        """Ends the connection without a TCP reset.

        The system resets a connection that is closed with unread bytes, and the reset may destroy
        the answer on its way. So further bytes are read and dropped until the client closes.
        """
        self._reader.stop()
        self._is_lingering = True
        self._since = self._clock()
        if self._is_reading_paused:
            self._is_reading_paused = False
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()

    def _tell_to_continue(self) -> None:
        # Clients would take it for an earlier answer.
        if self._transport is not None and not self._exchanges and not self._waiting:
            self._reader.wants_continue = False
            self._transport.write(CONTINUE)

    def _drop_requests(self) -> None:
        """Cancels all requests: nobody waits for their answers."""
        self._reader.stop()
        self._waiting.clear()
        exchanges, self._exchanges = self._exchanges, deque()
        for exchange in exchanges:
            self._application.end(exchange.request, None)
            exchange.make_response = None
            if exchange.cancel is not None and exchange.response is None:
                exchange.cancel()


def probe_dead_peers(connection: socket.socket | None) -> None:
    """Turns on TCP keep-alive, so that the kernel notices when a client's machine is gone."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES:
        if hasattr(socket, name):  # Not all systems have these options.
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _read_subject(certificate: dict[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """Returns the (name, value) pairs of a TLS certificate's subject.

    `ssl` nests them in tuples.
    """
    parts = certificate.get("subject", ()) if certificate else ()
    return tuple(pair for part in parts for pair in part)
