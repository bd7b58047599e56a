"""A small HTTP server for pages and probes: Studio, and the admin port of a model server."""

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")

_MAX_CONNECTIONS = 64
_POLL_SECONDS = 0.05
"""Seconds between two looks whether the server is to stop."""
_MAX_DISCARDED_BYTES = 2**20
_DISCARD_SECONDS = 1.0
"""The most that is read of a body that was refused."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A request. `HEAD` counts as `GET`; `path` has no query.

    `body` is `None` if its length is unknown or above the server's limit.
    """

    method: str
    path: str
    headers: Message
    body: bytes | None


@dataclass(frozen=True)
class Response:
    """The answer to a request."""

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def refuse(status: HTTPStatus, message: str, **headers: str) -> Response:
    """Returns a response with a message for the user, as `{"error": message}`."""
    return Response(status, json.dumps({"error": message}).encode(), headers=headers)


def is_host_allowed(host: str, allowed_hosts: Sequence[str]) -> bool:
    """Returns True if the `Host` header has an allowed name; `.a.b` allows all names below `a.b`.

    Otherwise a foreign page could point its own name at this server, and read it as if it were
    its own (DNS rebinding).
    """
    name, _, port = host.rpartition(":")
    name = name if port.isdecimal() else host
    return any(
        name.endswith(allowed) if allowed.startswith(".") else name == allowed
        for allowed in allowed_hosts
    )


class SmallHttpServer(ThreadingHTTPServer):
    """Calls one function for each request, on a thread for each connection.

    At most 64 clients are connected; the connections of further ones are closed.

    Args:
        respond: Function that returns the response to a request.
        listener: The listening socket. Defaults to a free port of loopback.
        name: The header `Server`, and the name of the thread.
        headers: Headers of every response.
        max_body_bytes: The size of the largest body that is read.
        idle_seconds: The time after which a silent connection is closed.
    """

    def __init__(
        self,
        respond: Callable[[Request], Response],
        listener: socket.socket | None = None,
        *,
        name: str = "keras_deepseek",
        headers: Mapping[str, str] | None = None,
        max_body_bytes: int = 0,
        idle_seconds: float = 10.0,
    ) -> None:
        listener = listener or socket.create_server(("127.0.0.1", 0))
        # The base class creates a socket of its own, which the listener replaces.
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_port = listener.getsockname()[1]
        self.respond = respond
        self.name = name
        self.headers = headers or {}
        self.max_body_bytes = max_body_bytes
        self.idle_seconds = idle_seconds
        self._connection_slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    def start(self) -> None:
        """Starts to answer, on a thread."""
        threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), name=self.name, daemon=True
        ).start()

    def stop(self) -> None:
        """Frees the port of a server that was started. Slow clients don't hold it up."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._connection_slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connection_slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs an error, unless the client has hung up."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            _logger.exception("A request to %s failed.", self.name)


class _Handler(BaseHTTPRequestHandler):
    server: SmallHttpServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.idle_seconds)

    def version_string(self) -> str:
        return self.server.name

    def log_message(self, *arguments: object) -> None:
        """Writes no log: probes would fill it."""

    def do_GET(self) -> None:
        length = self.headers.get("Content-Length", "0")
        body = None
        if "Transfer-Encoding" in self.headers or not length.isdecimal():
            self.close_connection = True  # The end of its body is unknown.
        elif int(length) > self.server.max_body_bytes:
            self.close_connection = True  # Its body stays unread.
        else:
            body = self.rfile.read(int(length))
        method = "GET" if self.command == "HEAD" else self.command
        path = self.path.partition("?")[0]
        self._send(self.server.respond(Request(method, path, self.headers, body)))
        if body is None:
            self._discard_body()

    do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_POST = do_PUT = do_GET  # noqa: N815

    def _discard_body(self) -> None:
        """Reads what the client still sends: a close before would lose the answer."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_DISCARD_SECONDS)
        end, size = time.monotonic() + _DISCARD_SECONDS, 0
        while size < _MAX_DISCARDED_BYTES and time.monotonic() < end:
            chunk = self.connection.recv(2**16)
            if not chunk:
                break
            size += len(chunk)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers a malformed request by an error in JSON. The base class would send HTML."""
        self.request_version = self.protocol_version
        status = HTTPStatus(code)
        self._send(refuse(status, message or explain or status.phrase, Connection="close"))

    def _send(self, response: Response) -> None:
        self.send_response(response.status, HTTPStatus(response.status).phrase)
        headers = {
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            **self.server.headers,
            **response.headers,
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)
