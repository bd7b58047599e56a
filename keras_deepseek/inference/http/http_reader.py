"""Parses requests from the bytes of a connection, and refuses malformed or too large ones.

httptools finds the parts of a message. This module applies the limits and builds the `HttpRequest`.
It reads and writes no socket.
"""

from urllib.parse import unquote

import httptools

from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.message import HttpError, HttpRequest

IDLE, HEAD, BODY = range(3)
"""The phases of a reader: between requests, in the request line or headers, in the body."""


class HttpReader:
    """Reads the requests of one connection. Larger bodies are refused with 413."""

    def __init__(self, limits: HttpLimits, max_body_bytes: int) -> None:
        self.client = ""
        """The client's address, for the requests."""
        self.peer_subject: tuple[tuple[str, str], ...] = ()
        """The subject of the client's certificate, for the requests."""
        self.phase = IDLE
        self.steps = 0
        """It grows whenever the phase changes."""
        self.body_bytes = 0
        """The bytes of the current body that have arrived."""
        self.is_done = False
        """True if nothing more is read: the client or the server wants to close the connection."""
        self.wants_continue = False
        """True if the client waits for "100 Continue" before it sends the body."""
        self._max_fields = limits.max_header_fields
        self._max_head_bytes = limits.max_header_bytes
        self._max_body_bytes = max_body_bytes
        self._complete: list[HttpRequest | HttpError] = []
        self._refusal: HttpError | None = None
        self._target = b""
        self._headers: dict[str, str] = {}
        self._fields = 0
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._is_old = False
        self._noted = (0, 0, 0)
        self._quiet_bytes = 0
        self._parser = httptools.HttpRequestParser(self)

    @property
    def path(self) -> str:
        """The path of the request whose body is being read, or an empty string."""
        return self._split_target()[0] if self.phase == BODY else ""

    def feed(self, data: bytes) -> list[HttpRequest | HttpError]:
        """Returns the requests that `data` completes. An `HttpError` is always the last item."""
        if self.is_done:
            return []
        try:
            self._parser.feed_data(data)
            if self.phase != IDLE:
                self._limit_quiet_bytes(len(data))
        except HttpError as refusal:
            self._end_with(refusal)
        except httptools.HttpParserUpgrade:
            # The client offers another protocol. The answer is HTTP/1.1, and then the end.
            self.is_done = True
        except httptools.HttpParserError as error:
            self._end_with(
                self._refusal or HttpError(400, f"The request is not HTTP/1.1: {error}.")
            )
        complete, self._complete = self._complete, []
        return complete

    def stop(self) -> None:
        """Makes the reader ignore all bytes that the connection still receives."""
        self.is_done = True
        self.wants_continue = False
        self.phase = IDLE

    def on_message_begin(self) -> None:
        """Starts to collect a new request."""
        self.phase = HEAD
        self.steps += 1
        self.body_bytes = 0
        self._target = b""
        self._headers = {}
        self._fields = 0
        self._head_bytes = 0
        self._body = []

    def on_url(self, piece: bytes) -> None:
        """Adds a piece of the request's URL."""
        self._target += piece
        self._head_bytes += len(piece)
        if self._head_bytes > self._max_head_bytes:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a header to the request. After a chunked body it is a trailer, which is ignored."""
        self._fields += 1
        self._head_bytes += len(name) + len(value)
        if self._fields > self._max_fields:
            self._refuse(431, f"More than {self._max_fields} headers.")
        if self._head_bytes > self._max_head_bytes:
            self._refuse_head()
        if self.phase == BODY:
            return  # Trailers could replace headers that are checked already.
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        if key in self._headers:
            text = f"{self._headers[key]}, {text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        """Checks the request's headers, and prepares to read its body."""
        self.phase = BODY
        self.steps += 1
        headers = self._headers
        version = self._parser.get_http_version()
        self._is_old = version == "1.0"
        if version != "1.1" and not self._is_old:
            self._refuse(505, f"HTTP/{version} is not supported. Use HTTP/1.1.")
        if "host" not in headers and not self._is_old:
            self._refuse(400, "The request is not HTTP/1.1: the header Host is missing.")
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            self._refuse(501, "This Transfer-Encoding is not supported. Use chunked.")
        if int(headers.get("content-length", 0)) > self._max_body_bytes:
            self._refuse_body()
        if "expect" in headers and not self._is_old:
            if headers["expect"].lower() != "100-continue":
                self._refuse(417, "This Expect is not supported. Use 100-continue.")
            self.wants_continue = True

    def on_body(self, piece: bytes) -> None:
        """Adds a piece of the request's body."""
        self.wants_continue = False
        self.body_bytes += len(piece)
        if self.body_bytes > self._max_body_bytes:
            self._refuse_body()
        self._body.append(piece)

    def on_message_complete(self) -> None:
        """Completes the request from the collected pieces."""
        self.phase = IDLE
        self.steps += 1
        self.wants_continue = False
        parser, body = self._parser, self._body
        keep_alive = parser.should_keep_alive() and not parser.should_upgrade()
        path, query = self._split_target()
        self._complete.append(
            HttpRequest(
                parser.get_method().decode("ascii"),
                path,
                query,
                self._headers,
                body[0] if len(body) == 1 else b"".join(body),
                self.client,
                self.peer_subject,
                keep_alive,
                self._is_old,
            )
        )
        self._body = []
        self.is_done = not keep_alive

    def _split_target(self) -> tuple[str, str]:
        """Splits the request target into its path and its query."""
        # httptools accepts ASCII alone.
        target = self._target.decode("ascii")
        # In the form for proxies the target has the host, too.
        if not target.startswith("/") and "://" in target:
            host_and_path = target.partition("://")[2].split("?")[0]
            start = target.index("://") + 3 + len(host_and_path.partition("/")[0])
            target = target[start:]
            target = target if target.startswith("/") else f"/{target}"
        path, _, query = target.partition("?")
        return unquote(path) if "%" in path else path, query

    def _limit_quiet_bytes(self, size: int) -> None:
        """Refuses an endless header line, which httptools reports only at its end."""
        noted = (self.steps, self._head_bytes, self.body_bytes)
        self._quiet_bytes = self._quiet_bytes + size if noted == self._noted else 0
        self._noted = noted
        if self._quiet_bytes > self._max_head_bytes:
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse(431, f"The headers are larger than {self._max_head_bytes} bytes.")

    def _refuse_body(self) -> None:
        self._refuse(
            413,
            f"The body is larger than {self._max_body_bytes} bytes. "
            "Send fewer rows in one request.",
        )

    def _refuse(self, status: int, message: str) -> None:
        # httptools replaces exceptions of its callbacks by its own.
        self._refusal = HttpError(status, message)
        raise self._refusal

    def _end_with(self, refusal: HttpError) -> None:
        # Bytes after the last request of a connection are ignored.
        if not self.is_done:
            refusal.path = self.path
            self._complete.append(refusal)
        self.stop()
