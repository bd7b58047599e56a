"""The HTTP server of Studio: static files for anybody, the runs for whoever has the secret."""

import gzip
import hmac
import json
import logging
import sys
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError, KerasDeepSeekError
from keras_deepseek.studio.dashboard import Dashboard
from keras_deepseek.studio.snapshot import make_report
from keras_deepseek.studio.store import Store

HEADER = "X-Studio-Key"
"""The header of the secret. Jupyter's proxy would pass `Authorization` on to others."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MAX_BODY = 1024 * 1024

STATIC = Path(__file__).parent / "static"
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'"
)
_PORTS_TRIED, _LAST_PORT = 20, 65535
_LEAST_COMPRESSED = 2000

_logger = logging.getLogger(__name__)


class StudioServer(ThreadingHTTPServer):
    """Answers on loopback; takes the next free port if the wanted one is in use.

    Args:
        store: The runs.
        secret: The secret that requests for runs carry.
        port: The wanted port; 0 takes any.
        dashboard: What the user set for the page.
        allowed_hosts: More names that the `Host` header may have, such as that of a proxy.
    """

    daemon_threads = True

    def __init__(
        self,
        store: Store,
        secret: str,
        port: int,
        dashboard: Dashboard,
        allowed_hosts: Sequence[str] = (),
    ) -> None:
        self.store = store
        self.secret = secret
        self.dashboard = dashboard
        self.allowed_hosts = (*LOOPBACK, *allowed_hosts)
        self.static = {
            f"/{path.relative_to(STATIC).as_posix()}": path
            for path in STATIC.rglob("*")
            if path.suffix in _KINDS
        }
        if port > _LAST_PORT:
            raise InvalidInputError(f"`port` must be at most {_LAST_PORT}, received {port}.")
        last = min(port + _PORTS_TRIED, _LAST_PORT + 1) if port else 1
        for number in range(port, last):
            try:
                super().__init__(("127.0.0.1", number), _Handler)
                break
            except OSError as error:
                if number + 1 == last:
                    raise InvalidInputError(
                        f"No port from {port} to {number} can be opened: {error}. Name another "
                        "port."
                    ) from error
        if port and self.server_port != port:
            _logger.warning("Port %d is in use: Studio uses %d.", port, self.server_port)

    @property
    def url(self) -> str:
        """The address of the page, with the secret in its fragment, which no request carries."""
        return f"http://127.0.0.1:{self.server_port}/#{self.secret}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs an error, but not a page that went away in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            _logger.exception("A request to Studio failed.")


class _Handler(BaseHTTPRequestHandler):
    server: StudioServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Studio", ""
    timeout = 60  # Of an idle connection.

    def log_message(self, *_arguments: object) -> None:
        """Logs no request."""

    def do_GET(self) -> None:
        if not self._check_host():
            return
        path = self.path.partition("?")[0]
        file = self.server.static.get("/index.html" if path == "/" else path)
        if file is None:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
        else:
            self._answer(HTTPStatus.OK, file.read_bytes(), _KINDS[file.suffix])

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True  # Its body stays unread.
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Send at most {MAX_BODY} bytes.")
            return
        body = self.rfile.read(int(length))
        if not self._check_host():
            return
        received = self.headers.get(HEADER, "").encode("latin-1")
        if not hmac.compare_digest(received, self.server.secret.encode()):
            text = "Open the address that Studio printed: its end, after #, is the key."
            self._refuse(HTTPStatus.FORBIDDEN, text)
            return
        call = _CALLS.get(self.path.partition("?")[0])
        if call is None:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such call.")
            return
        try:
            answer = call(self.server, dict(json.loads(body or b"{}")))
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            is_ours = isinstance(error, KerasDeepSeekError)
            text = str(error) if is_ours else f"This request can't be read: {error}"
            self._refuse(HTTPStatus.BAD_REQUEST, text)
            return
        except OSError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"The run can't be read: {error}")
            return
        text = json.dumps(answer, separators=(",", ":"), default=str)
        self._answer(HTTPStatus.OK, text.encode(), "application/json")

    def _check_host(self) -> bool:
        """Refuses the names of others: their pages would pass for ours (DNS rebinding)."""
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        # Jupyter's proxy passes the outer host on.
        is_known = any(
            name.endswith(allowed) if allowed.startswith(".") else name == allowed
            for allowed in self.server.allowed_hosts
        )
        if is_known or "X-ProxyContextPath" in self.headers:
            return True
        text = f"The host {name[:80]!r} is unknown here. Name it in `allowed_hosts`."
        self._refuse(HTTPStatus.MISDIRECTED_REQUEST, text)
        return False

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._answer(status, json.dumps({"error": text}).encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        is_small = len(body) < _LEAST_COMPRESSED or "gzip" not in self.headers.get(
            "Accept-Encoding", ""
        )
        body = body if is_small else gzip.compress(body, 3)
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": _POLICY,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        if not is_small:
            headers["Content-Encoding"] = "gzip"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _poll(server: StudioServer, request: dict[str, Any]) -> Any:
    return server.store.poll(request)


def _document(server: StudioServer, request: dict[str, Any]) -> Any:
    return server.store.run(request["run"]).document(str(request["name"]))


def _command(server: StudioServer, request: dict[str, Any]) -> Any:
    server.store.run(request["run"]).ask(str(request["name"]))
    return {}


def _report(server: StudioServer, _request: dict[str, Any]) -> Any:
    return {"page": make_report(server.store, server.dashboard)}


def _settings(server: StudioServer, _request: dict[str, Any]) -> Any:
    return {"folder": str(server.store.folder), "dashboard": server.dashboard.as_page_settings()}


_CALLS: dict[str, Callable[[StudioServer, dict[str, Any]], Any]] = {
    "/api/poll": _poll,
    "/api/document": _document,
    "/api/command": _command,
    "/api/report": _report,
    "/api/settings": _settings,
}
