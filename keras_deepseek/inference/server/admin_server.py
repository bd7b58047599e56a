"""The admin port: health and metrics alone, over plain HTTP and without a token.

It answers on threads of its own, so that it needs neither the event loop of a server nor an engine.
"""

import json
import logging
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from keras_deepseek.inference.arguments import check_address
from keras_deepseek.inference.server.engine import Engine
from keras_deepseek.inference.server.server import NOT_READY, join_address, listen

_MAX_CONNECTIONS = 64
_TIMEOUT_SECONDS = 10.0
_POLL_SECONDS = 0.05
"""Seconds between two looks whether the server is to stop."""

_logger = logging.getLogger(__name__)

_PATHS = "The admin port has /metrics, /healthz, /v2/health/live and /v2/health/ready."


class AdminServer:
    """Answers `/v2/health/live`, `/v2/health/ready`, `/healthz` and `/metrics`.

    It may start before there is an engine: then it is not ready, and `/metrics` has the process.
    """

    def __init__(self, host: str, port: int, engine: Engine | None = None) -> None:
        check_address(host, port)
        self.host = host
        self.port = port
        self.engine = engine
        self._http: _HttpServer | None = None

    @property
    def url(self) -> str:
        """The address, as in `"http://127.0.0.1:8502"`."""
        return f"http://{join_address(self.host, self.port)}"

    @property
    def ready(self) -> bool:
        """True if the engine has servers, and all of them are ready."""
        servers = () if self.engine is None else self.engine.servers
        return bool(servers) and all(server.ready for server in servers)

    def start(self) -> None:
        """Starts to answer, on a thread."""
        self._http = _HttpServer(self, listen(self.host, self.port))
        self.port = self._http.socket.getsockname()[1]
        threading.Thread(
            target=self._http.serve_forever, args=(_POLL_SECONDS,), name="admin", daemon=True
        ).start()
        _logger.info("Health and metrics are at %s.", self.url)

    def stop(self) -> None:
        """Frees the port."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None


class _HttpServer(ThreadingHTTPServer):
    block_on_close = False  # A slow client would hold up the end.

    def __init__(self, admin: AdminServer, listener: socket.socket) -> None:
        super().__init__((admin.host, admin.port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.admin = admin
        self._connection_slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    def process_request(self, request: object, client_address: object) -> None:
        if self._connection_slots.acquire(blocking=False):
            super().process_request(request, client_address)  # type: ignore[arg-type]
        else:
            self.shutdown_request(request)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._connection_slots.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that hang up or send no HTTP."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one request of a connection, and closes it."""

    server: _HttpServer
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_SECONDS
    server_version = "keras_deepseek"
    sys_version = ""

    def do_GET(self) -> None:
        path, admin = self.path.partition("?")[0], self.server.admin
        if path == "/v2/health/live":
            self._answer(200, b'{"live":true}')
        elif path == "/v2/health/ready":
            is_ready = admin.ready
            self._answer(*((200, b'{"ready":true}') if is_ready else (503, b'{"ready":false}')))
        elif path == "/healthz":
            if admin.ready:
                self._answer(200, b'{"status":"ready"}')
            else:
                self.send_error(503, NOT_READY)
        elif path == "/metrics":
            self._answer(*_read_metrics(admin, self.headers.get("accept", "")))
        else:
            self.send_error(404, _PATHS)

    do_HEAD = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers an error as JSON, in the place of HTML."""
        if code == HTTPStatus.NOT_IMPLEMENTED:  # It has no `do_` with the method's name.
            code, message = 405, f"Use GET. {_PATHS}"
        self.request_version = self.protocol_version  # It is unknown if the request was no HTTP.
        text = message or explain or HTTPStatus(code).phrase
        self._answer(code, json.dumps({"error": text}).encode())

    def log_message(self, *arguments: object) -> None:
        """Writes no log: probes would fill it."""

    def _answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _read_metrics(admin: AdminServer, accept: str) -> tuple[int, bytes, str]:
    try:
        from keras_deepseek.inference.server.metrics import write_metrics
    except ImportError:
        message = {"error": "Not installed: pip install 'keras_deepseek[serving]'."}
        return 501, json.dumps(message).encode(), "application/json"
    is_open = "application/openmetrics-text" in accept
    return 200, *write_metrics(admin.engine, open_metrics=is_open)
