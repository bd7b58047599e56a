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
from typing import Any, Protocol, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from keras_deepseek.inference.batching.hang_ups import find_closed
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.message import EXTENSION, HttpError

_HEADS_PIECE, _BODY_PIECE = 2**12, 2**16
"""Bytes that are parsed in one turn of the loop: many small requests, or many small chunks."""

_IDLE, _HEAD, _BODY = range(3)
"""The phases of a connection: between requests, in the request line or headers, in the body."""

_HOST = re.compile(rb"([\w.~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(:\d*)?")
_SUBSTITUTE = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
"""Parsed in the place of a request that can't be, so that its refusal waits for its turn."""


class Refuser(Protocol):
    """The method of the application that its connections call."""

    def refuse_early(
        self, method: bytes, path: bytes, headers: list[tuple[bytes, bytes]]
    ) -> tuple[list[tuple[bytes, bytes]], bytes] | None:
        """Returns the headers and the body of a 429 to a request that is not worth reading."""


class ConnectionOwner(Protocol):
    """The members of the server that its connections use."""

    limits: HttpLimits
    is_unready: bool
    is_stopping: bool

    @property
    def application(self) -> Refuser:
        """The application that answers."""


class Exchange:
    """One request of a connection. The application knows it as `message.Exchange`."""

    __slots__ = ("_callback", "cycle", "descriptor", "has_hung_up", "is_request", "refusal")

    def __init__(
        self, refusal: HttpError | None, descriptor: int | None, *, is_request: bool
    ) -> None:
        self._callback: Callable[[], object] | None = None
        self.descriptor = descriptor
        self.cycle: Any = None
        self.refusal = refusal
        self.is_request = is_request
        self.has_hung_up = False
        """True if the client has closed the connection."""

    def call_on_hang_up(self, callback: Callable[[], object]) -> None:
        """Calls `callback` if the client hangs up, or at once if it has hung up."""
        self._callback = callback
        if self.has_hung_up:
            callback()

    def hang_up(self) -> None:
        """Tells the application that the client has hung up."""
        self.has_hung_up = self.cycle.disconnected = True
        self.cycle.message_event.set()
        if self._callback is not None:
            self._callback()


class _Flow(FlowControl):
    """Reads nothing while pipelined requests wait. Otherwise a client could pile them up."""

    def __init__(self, transport: asyncio.Transport, protocol: "HttpProtocol") -> None:
        super().__init__(transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        if not self._protocol.pipeline and not self._protocol.unread:
            super().resume_reading()


class _Transport:
    """A transport for uvicorn's requests, which close it after the last answer.

    uvicorn writes the head of an answer and its body one after the other. One system call for both
    takes half the time of two.
    """

    def __init__(self, protocol: "HttpProtocol", transport: asyncio.Transport) -> None:
        self._head = b""
        self._writelines = transport.writelines
        self._linger = protocol.linger
        self.is_closing = lambda: protocol.is_lingering or transport.is_closing()

    def write(self, data: bytes) -> None:
        """Writes data, but keeps the head of an answer until its body."""
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
        else:
            self._writelines((self._head, data))
            self._head = b""

    def close(self) -> None:
        """Ends the connection behind what was written."""
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
        owner: ConnectionOwner,
        config: Config,
        state: ServerState,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self.access_log = False  # The application has its own.
        self.is_lingering = False
        self._is_refused_early = False
        self.unread = b""
        """Bytes that have come behind pipelined requests, which are answered first."""
        self._is_held = False
        self._owner, self._limits, self._clock = owner, owner.limits, clock
        self._raw: asyncio.Transport
        self._descriptor: int | None = None
        # In the order of the requests. The first is running, the others wait.
        self._exchanges: deque[Exchange] = deque()
        self._refusal: HttpError | None = None
        self._is_done = False
        """True if nothing more is read: the client or the server wants to close the connection."""
        self._phase, self._since = _IDLE, clock()
        """The second is when the phase last changed, or the last answer was given."""
        age = self._limits.connection_seconds * random.uniform(1.0, 1.1)
        self._expires = self._since + age
        self._body_bytes = self._field_bytes = 0
        self._noted = (_IDLE, 0)
        self._unsent, self._unsent_since = 0, self._since

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins with a new connection, after the TLS handshake if there is one."""
        self._raw = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        self._descriptor = None if connection is None else connection.fileno()
        super().connection_made(self._raw)
        self._transport = _Transport(self, self._raw)
        self.transport = cast(asyncio.Transport, self._transport)
        self.flow = _Flow(self._raw, self)
        if len(self.connections) > self._limits.max_connections:
            message = "The server has too many connections. Try again later."
            self._end_with(HttpError(503, message, (("retry-after", "1"),)))

    def data_received(self, data: bytes) -> None:
        """Reads bytes, and starts the request that they begin."""
        self.unread += data
        self._read()

    def _read(self) -> None:
        """Parses a piece of the bytes, and the next one when the loop has served others."""
        if self.unread and not self.pipeline and not self._is_done:
            size = _BODY_PIECE if self._phase == _BODY else _HEADS_PIECE
            piece, self.unread = self.unread[:size], self.unread[size:]
            self._parse(piece)
        if self._is_done:
            self.unread = b""
        elif self.unread:
            self._is_held = True
            self.flow.pause_reading()
            if not self.pipeline:
                self.loop.call_soon(self._read)
        elif self._is_held:
            self._is_held = False
            self.flow.resume_reading()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
            if self._phase != _IDLE and not self._is_done:
                self._limit_fields(len(data))
        except httptools.HttpParserUpgrade:
            # The client offers another protocol. The answer is HTTP/1.1, and then the end.
            self._is_done, self.cycle.keep_alive = True, False
        except httptools.HttpParserError as error:
            if not self._is_done:
                self._end_with(HttpError(400, f"The request is not HTTP/1.1: {error}."))

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
        if self._is_done:  # Bytes after the last request are ignored.
            raise HttpError(400, "The connection is ending.")  # It becomes an HttpParserError.
        super().on_message_begin()
        self._is_refused_early = False
        self._phase, self._since = _HEAD, self._clock()
        self._body_bytes, self._noted = 0, (_IDLE, 0)

    def on_headers_complete(self) -> None:
        """Checks the request's headers, and starts the application."""
        previous, is_request = self.cycle, self._refusal is None
        if is_request:
            try:
                self._check_headers()
            except HttpError as error:
                self._refusal = error
        self._phase, self._since = _BODY, self._clock()
        is_last = self._owner.is_unready or self._owner.is_stopping or self._since > self._expires
        if not is_last and self._refusal is None and self._refuse_early():
            return
        exchange = Exchange(self._refusal, self._descriptor, is_request=is_request)
        self.scope["extensions"] = cast(Any, {EXTENSION: exchange})
        super().on_headers_complete()
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
        parser = self.parser
        if (
            self._exchanges
            or self.flow.write_paused
            or self.expect_100_continue
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or parser.should_upgrade()
        ):
            return False
        answer = self._owner.application.refuse_early(parser.get_method(), self.url, self.headers)
        if answer is None:
            return False
        headers, body = answer
        fields = (b"%b: %b\r\n" % field for field in (*self.server_state.default_headers, *headers))
        self._raw.write(b"%b%b\r\n%b" % (STATUS_LINE[429], b"".join(fields), body))
        self.headers = []
        self._is_refused_early = True
        return True

    def on_body(self, body: bytes) -> None:
        """Adds a piece of the request's body."""
        self._body_bytes += len(body)
        if not self._is_refused_early:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the body of a request."""
        if not self._is_refused_early:
            super().on_message_complete()
            if self._body_bytes > HIGH_WATER_LIMIT:
                self.flow.resume_reading()  # The client may end the connection.
        self._phase, self._since = _IDLE, self._clock()
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
        if self.unread and not self.pipeline:
            self.loop.call_soon(self._read)

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
        elif is_settled and self._phase == _IDLE and not (self.unread or self.is_lingering):
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
        elif not self._is_done and waited > (
            limits.header_seconds
            if self._phase == _HEAD
            else limits.body_seconds + self._body_bytes / limits.min_body_rate
        ):
            self._end_with(HttpError(408, "The request took too long to come."))

    def _check_headers(self) -> None:
        """Raises an `HttpError` to refuse a request."""
        version, limits = self.parser.get_http_version(), self._limits
        if version not in ("1.0", "1.1"):
            raise HttpError(505, f"HTTP/{version} is not supported. Use HTTP/1.1.")
        hosts, size = 0, len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
                if not _HOST.fullmatch(value):
                    raise HttpError(400, f"The header Host is malformed: {value!r:.100}.")
            elif name == b"transfer-encoding":
                if version == "1.0":
                    raise HttpError(400, "HTTP/1.0 has no Transfer-Encoding. Use HTTP/1.1.")
                if value.lower() != b"chunked":
                    raise HttpError(501, "This Transfer-Encoding is not supported. Use chunked.")
            elif name == b"expect" and version == "1.1" and value.lower() != b"100-continue":
                raise HttpError(417, "This Expect is not supported. Use 100-continue.")
        if size > limits.max_header_bytes:
            raise self._refuse_head()
        if len(self.headers) > limits.max_header_fields:
            raise HttpError(431, f"More than {limits.max_header_fields} headers.")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise HttpError(400, f"Expected one header Host, received {hosts}.")

    def _refuse_head(self) -> HttpError:
        size = self._limits.max_header_bytes
        return HttpError(431, f"The headers are larger than {size} bytes.")

    def _limit_fields(self, size: int) -> None:
        """Refuses an endless head or trailer, of which httptools reports whole lines only."""
        noted = (self._phase, self._body_bytes)
        self._field_bytes = self._field_bytes + size if noted == self._noted else 0
        self._noted = noted
        if self._field_bytes > self._limits.max_header_bytes:
            self._end_with(self._refuse_head())

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
            exchange.hang_up()
            exchange.cycle = None
