"""Makes requests of the bytes of one connection, and refuses those that are malformed or too large.

httptools finds the parts of a message; this file holds the limits and builds the `HttpRequest`.
It does no input and no output: `http_connection` does.
"""

from urllib.parse import unquote

import httptools

from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.message import HttpError, HttpRequest

IDLE, HEAD, BODY = range(3)
"""Where a reader is: between requests, in the line or the headers of one, or in its body."""


class HttpReader:
    """Reads the requests of one connection.

    Args:
        limits: `HttpLimits`.
        max_body_bytes: integer. Larger bodies are refused with 413.
    """

    def __init__(self, limits: HttpLimits, max_body_bytes: int) -> None:
        self.client = ""
        """The address of the other end, for the requests."""
        self.peer_subject: tuple[tuple[str, str], ...] = ()
        """The subject of its certificate, for the requests."""
        self.phase = IDLE
        self.steps = 0
        """Grows whenever the phase changes."""
        self.body_bytes = 0
        """What has come of the present body."""
        self.is_done = False
        """Whether nothing more is read: the client or the server wants the connection closed."""
        self.wants_continue = False
        """Whether the client waits for "100 Continue" before it sends the body."""
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

    def feed(self, data: bytes) -> list[HttpRequest | HttpError]:
        """Returns the requests that `data` completes. An `HttpError` is the last of all.

        Args:
            data: bytes. What came next.
        """
        if self.is_done:
            return []
        try:
            self._parser.feed_data(data)
            if self.phase != IDLE:
                self._limit_quiet_bytes(len(data))
        except HttpError as refusal:
            self._end_with(refusal)
        except httptools.HttpParserUpgrade:
            self.is_done = (
                True  # Another protocol was offered: the answer is HTTP/1.1, and the end.
            )
        except httptools.HttpParserError as error:
            self._end_with(
                self._refusal or HttpError(400, f"The request is not HTTP/1.1: {error}.")
            )
        complete, self._complete = self._complete, []
        return complete

    def stop(self) -> None:
        """Reads nothing more."""
        self.is_done = True
        self.wants_continue = False
        self.phase = IDLE

    def on_message_begin(self) -> None:
        """A request begins."""
        self.phase = HEAD
        self.steps += 1
        self.body_bytes = 0
        self._target = b""
        self._headers = {}
        self._fields = 0
        self._head_bytes = 0
        self._body = []

    def on_url(self, piece: bytes) -> None:
        """A piece of the target has come."""
        self._target += piece
        self._head_bytes += len(piece)
        if self._head_bytes > self._max_head_bytes:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has come, or, after a body in chunks, a trailer."""
        self._fields += 1
        self._head_bytes += len(name) + len(value)
        if self._fields > self._max_fields:
            self._refuse(431, f"More than {self._max_fields} headers.")
        if self._head_bytes > self._max_head_bytes:
            self._refuse_head()
        if self.phase == BODY:
            return  # Trailers could replace headers that were looked at already.
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        if key in self._headers:
            text = f"{self._headers[key]}, {text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        """The body comes next."""
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
            self._refuse(501, "The one Transfer-Encoding that is supported is chunked.")
        if int(headers.get("content-length", 0)) > self._max_body_bytes:
            self._refuse_body()
        if "expect" in headers and not self._is_old:
            if headers["expect"].lower() != "100-continue":
                self._refuse(417, "The one Expect that is supported is 100-continue.")
            self.wants_continue = True

    def on_body(self, piece: bytes) -> None:
        """A piece of the body has come."""
        self.wants_continue = False
        self.body_bytes += len(piece)
        if self.body_bytes > self._max_body_bytes:
            self._refuse_body()
        self._body.append(piece)

    def on_message_complete(self) -> None:
        """The request is whole."""
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
        """Returns the path and the query."""
        # httptools refuses other bytes than those of ASCII.
        target = self._target.decode("ascii")
        if not target.startswith("/") and "://" in target:  # As to a proxy, it has the host too.
            host_and_path = target.partition("://")[2].split("?")[0]
            start = target.index("://") + 3 + len(host_and_path.partition("/")[0])
            target = target[start:]
            target = target if target.startswith("/") else f"/{target}"
        path, _, query = target.partition("?")
        return unquote(path) if "%" in path else path, query

    def _limit_quiet_bytes(self, size: int) -> None:
        """Refuses a line that never ends: nothing is told of it until it does."""
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
        # httptools turns whatever is raised inside of it into an error of its own.
        self._refusal = HttpError(status, message)
        raise self._refusal

    def _end_with(self, refusal: HttpError) -> None:
        # After the last request of a connection, whatever comes is none.
        if not self.is_done:
            self._complete.append(refusal)
        self.stop()
