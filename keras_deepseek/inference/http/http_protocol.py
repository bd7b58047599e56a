"""The connections of the HTTP server: uvicorn's protocol, with limits on sizes, times and numbers.

uvicorn parses requests by httptools and runs the ASGI application. This module ends connections of
clients that misbehave: that send malformed or endless heads, send or read slowly, or send after the
end. It also closes connections behind an answer, when they are old or the server stops.
"""

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from keras_deepseek.inference.batching.late_requests import find_closed
from keras_deepseek.inference.http.http_application import HttpApplication
from keras_deepseek.inference.http.message import EXTENSION, Exchange, HttpError

MAX_PIPELINED = 128
"""Requests that a client may send before it has the answer to the first of them."""

_IDLE, _HEAD, _BODY = range(3)
"""The phases of a connection: between requests, in the request line or headers, in the body."""

_HOST = re.compile(rb"([\w.~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(:\d*)?")
_SUBSTITUTE = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
"""Parsed in the place of a request that can't be, so that its refusal waits for its turn."""


class _Transport:
    """A transport that writes the head of an answer and its body by one system call.

    uvicorn writes them one after the other, and two system calls take twice the time. It calls
    `close` after the last answer of a connection.
    """

    def __init__(self, protocol: "HttpProtocol", transport: asyncio.Transport) -> None:
        self._head = b""
        self._writelines = transport.writelines
        self._linger = protocol.linger
        self.is_closing = lambda: protocol.is_lingering or transport.is_closing()

    def write(self, data: bytes) -> None:
        """Writes data, but keeps the head of an answer until its body."""
        if not self._head and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
        else:
            self._writelines((self._head, data))
            self._head = b""

    def close(self) -> None:
        """Ends the connection, after the data written so far."""
        self.flush()
        self._linger()

    def flush(self) -> None:
        """Writes the head of an answer that has no body."""
        if self._head:
            self.write(b"")


class HttpProtocol(HttpToolsProtocol):
    """The protocol of one connection. `check_time` must be called regularly."""

    def __init__(
        self,
        application: HttpApplication,
        config: Config,
        state: ServerState,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self.access_log = False  # The application has its own.
        self.is_lingering = False
        self._application, self._service = application, application.service
        self._limits, self._clock = application.service.limits, clock
        self._raw: asyncio.Transport
        # In the order of the requests. The first is running, the others wait.
        self._exchanges: deque[Exchange] = deque()
        self._refusal: HttpError | None = None
        self._is_refused_early = False
        self._is_done = False
        """True if nothing more is read: the client or the server wants to close the connection."""
        self._phase, self._since = _IDLE, clock()
        """The second is when the phase last changed, or the last answer was given."""
        self._expires = self._since + self._limits.connection_seconds * random.uniform(1.0, 1.1)
        self._body_bytes = self._field_bytes = 0
        self._unsent, self._unsent_since = 0, self._since

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins with a new connection, after the TLS handshake if there is one."""
        self._raw = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        self._descriptor = None if connection is None else connection.fileno()
        super().connection_made(self._raw)
        self._transport = _Transport(self, self._raw)
        self.transport = cast(asyncio.Transport, self._transport)
        if len(self.connections) > self._limits.max_connections:
            message = "The server has too many connections. Try again later."
            self._end_with(HttpError(503, message, (("retry-after", "1"),)))

    def data_received(self, data: bytes) -> None:
        """Parses bytes, and starts a request with its headers. Ignores what follows the last."""
        if self._is_done:
            return
        # httptools reports whole lines only, so an endless one is noticed by its bytes.
        self._field_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The client offers another protocol. The answer is HTTP/1.1, and then the end.
            self._is_done, self.cycle.keep_alive = True, False
        except httptools.HttpParserError as error:
            if not self._is_done:
                reason = error.__cause__  # Set if it was raised here.
                message = reason or f"The request is not HTTP/1.1: {error}."
                self._end_with(self._refusal or HttpError(400, str(message)))
        if self._field_bytes > self._limits.max_header_bytes and not self._is_done:
            self._end_with(_too_large_head(self._limits.max_header_bytes))

    def eof_received(self) -> None:
        """Drops the requests of a client that has closed the connection or its sending half."""
        self._drop_requests()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drops the requests of a closed connection."""
        self._drop_requests()
        super().connection_lost(exc)
        # Without these reference cycles no closed connection waits for the garbage collector.
        del self.cycle, self.flow, self.transport, self._transport
        self._refusal = None

    def on_message_begin(self) -> None:
        """Starts to collect a new request."""
        if self._refusal is None and len(self._exchanges) >= MAX_PIPELINED:
            raise HttpError(400, f"More than {MAX_PIPELINED} requests wait for their answers.")
        if self._is_done:  # Bytes after the last request are ignored.
            raise HttpError(400, "The connection is ending.")
        super().on_message_begin()
        self._is_refused_early = False
        self._phase, self._since = _HEAD, self._clock()
        self._body_bytes = self._field_bytes = 0

    def on_headers_complete(self) -> None:
        """Checks the request's headers, and starts the application."""
        previous, is_request, parser = self.cycle, self._refusal is None, self.parser
        if is_request:
            try:
                self._check_headers()
            except HttpError as error:
                self._refusal = error
        self._since, self._field_bytes = self._clock(), 0
        service = self._service
        is_last = service.is_unready or service.is_stopping or self._since > self._expires
        is_plain = parser.get_http_version() == "1.1" and not parser.should_upgrade()
        is_kept_alive = is_plain and parser.should_keep_alive() and not is_last
        if is_kept_alive and self._refusal is None and self._refuse_early():
            self._phase = _BODY
            return
        exchange = Exchange(self._refusal, self._descriptor, is_request=is_request)
        self.scope["extensions"] = cast(Any, {EXTENSION: exchange})
        super().on_headers_complete()  # It refuses an address that it can't parse.
        self._phase = _BODY
        self.headers = []  # Trailers are ignored: they could replace headers that are checked.
        exchange.cycle = self.cycle
        self._exchanges.append(exchange)
        if is_last:
            if previous is not None and not previous.response_started:
                previous.keep_alive = True  # It is no longer the last one.
            self.cycle.keep_alive = False
        if self._refusal is not None:
            self._is_done, self.cycle.keep_alive = True, False

    def _refuse_early(self) -> bool:
        """Answers a request whose model has no room for it, and drops its body as it comes.

        The way through the application takes about twice the time, which is scarce then.
        """
        if self._exchanges or self.flow.write_paused or self.expect_100_continue:
            return False
        method = self.parser.get_method()
        answer = self._application.refuse_early(method, self.url, self.headers)
        if answer is None:
            return False
        headers, body = answer
        fields = (b"%b: %b\r\n" % field for field in (*self.server_state.default_headers, *headers))
        self._raw.write(b"%b%b\r\n%b" % (STATUS_LINE[429], b"".join(fields), body))
        self.headers = []
        self._is_refused_early = True
        return True

    def on_body(self, body: bytes) -> None:
        """Adds a piece of the request's body, or drops it if the request is answered already."""
        self._body_bytes += len(body)
        self._field_bytes = 0
        if not (self._is_refused_early or self.cycle.response_complete):
            super().on_body(body)
        elif self._body_bytes > self._service.options.max_body_bytes:
            self.linger()

    def on_message_complete(self) -> None:
        """Ends the body of a request."""
        if not self._is_refused_early:
            super().on_message_complete()
            if self._body_bytes > HIGH_WATER_LIMIT:
                self.flow.resume_reading()  # The client may end the connection.
        self._phase, self._since, self._field_bytes = _IDLE, self._clock(), 0
        self._is_done = self._is_done or not self.parser.should_keep_alive()

    def on_response_complete(self) -> None:
        """Starts the next request of the connection, if there is one."""
        # Without these reference cycles the garbage collector has a third of the work.
        exchange = self._exchanges.popleft()
        exchange.cycle = exchange.refusal = None
        self._transport.flush()
        self._since = self._clock()
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())

    def linger(self) -> None:
        """Ends the connection without a TCP reset.

        The system resets a connection that is closed with unread bytes, and the reset may destroy
        the answer on its way. So further bytes are read and dropped until the client closes.
        """
        if self._is_done and self._refusal is None:
            self._raw.close()  # The client announced that it sends nothing more.
        elif not self.is_lingering and not self._raw.is_closing():
            self.is_lingering = self._is_done = True
            self._since = self._clock()
            self.pipeline.clear()
            self.flow.resume_reading()
            if self._raw.can_write_eof():
                self._raw.write_eof()

    def shutdown(self, *, is_settled: bool = True) -> None:
        """Closes the connection after the answer to its last request, or at once if it is idle.

        Idle connections stay open until `is_settled`: a request may be on its way.
        """
        if self._exchanges:
            self.cycle.keep_alive = False
        elif is_settled and self._phase == _IDLE and not self.is_lingering:
            self._raw.close()

    def abort(self) -> None:
        """Drops the connection and all unsent bytes."""
        self._raw.abort()

    def check_time(self) -> None:
        """Closes the connection if a read, a write or an idle time exceeds its limit."""
        now, limits, unsent = self._clock(), self._limits, self._raw.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent:
            self._unsent_since = now
        self._unsent = unsent
        waited = now - self._since
        if unsent:
            if now - self._unsent_since > limits.write_seconds:
                self.abort()
        elif self.is_lingering:
            if waited > limits.linger_seconds:
                self.abort()
        elif self.flow.read_paused:
            self._since = now
            # The end of the connection is not read, and no batch takes its requests.
            if self._descriptor is not None and find_closed([self._descriptor]):
                self.abort()
        elif self._phase == _IDLE:
            is_new = self.scope is None
            seconds = limits.header_seconds if is_new else limits.idle_seconds
            if not self._exchanges and waited > seconds:
                self._raw.close()
        elif not self._is_done:
            seconds = limits.header_seconds
            if self._phase == _BODY:
                seconds = limits.body_seconds + self._body_bytes / limits.min_body_rate
            if waited > seconds:
                self._end_with(HttpError(408, "The request took too long to come."))

    def _check_headers(self) -> None:
        version, limits = self.parser.get_http_version(), self._limits
        if version not in ("1.0", "1.1"):
            raise HttpError(505, f"HTTP/{version} is not supported. Use HTTP/1.1.")
        hosts, size = 0, len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
                if not _HOST.fullmatch(value):
                    raise HttpError(
                        400, f"The header Host is malformed: {value.decode('latin-1')!r:.100}."
                    )
            elif name == b"transfer-encoding":
                if version == "1.0":
                    raise HttpError(400, "HTTP/1.0 has no Transfer-Encoding. Use HTTP/1.1.")
                if value.lower() != b"chunked":
                    raise HttpError(501, "This Transfer-Encoding is not supported. Use chunked.")
        if size > limits.max_header_bytes:
            raise _too_large_head(limits.max_header_bytes)
        if len(self.headers) > limits.max_header_fields:
            raise HttpError(431, f"More than {limits.max_header_fields} headers.")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise HttpError(400, f"Expected one header Host, received {hosts}.")

    def _end_with(self, refusal: HttpError) -> None:
        """Lets the application answer with an error, after earlier requests, and then closes."""
        self._refusal = refusal
        if self._phase != _BODY:
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(_SUBSTITUTE)
        elif self._exchanges:
            self._exchanges[-1].refusal = refusal
            self.cycle.keep_alive = False
            self.cycle.message_event.set()
        else:  # It was answered before its body had come.
            self.linger()
        self._is_done = True

    def _drop_requests(self) -> None:
        """Cancels all requests: nobody waits for their answers."""
        self._is_done = True
        self.pipeline.clear()
        exchanges, self._exchanges = self._exchanges, deque()
        for exchange in exchanges:
            exchange.disconnect()
            exchange.cycle = None


def _too_large_head(max_bytes: int) -> HttpError:
    return HttpError(431, f"The headers are larger than {max_bytes} bytes.")
