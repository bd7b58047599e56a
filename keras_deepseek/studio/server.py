"""The HTTP server of Studio: static files for anybody, the runs for whoever has the secret."""

import gzip
import hmac
import json
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError, KerasDeepSeekError
from keras_deepseek.http_server import (
    LOOPBACK_HOSTS,
    Request,
    Response,
    SmallHttpServer,
    is_host_allowed,
    refuse,
)
from keras_deepseek.studio.dashboard import Dashboard
from keras_deepseek.studio.snapshot import make_report
from keras_deepseek.studio.store import Store

HEADER = "X-Studio-Key"
"""The header of the secret. Jupyter's proxy would pass `Authorization` on to others."""

MAX_BODY = 1024 * 1024

_STATIC = Path(__file__).parent / "static"
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PORTS_TRIED, _LAST_PORT = 20, 65535
_LEAST_COMPRESSED = 2000

_logger = logging.getLogger(__name__)


class StudioServer(SmallHttpServer):
    """The HTTP server of Studio, on loopback, at the next free port if the wanted one is in use.

    Args:
        store: The runs.
        secret: The secret that requests for runs carry.
        port: The wanted port; 0 takes any.
        dashboard: The settings of the page.
        allowed_hosts: More names that the `Host` header may have, such as that of a proxy.
    """

    def __init__(
        self,
        store: Store,
        secret: str,
        port: int,
        dashboard: Dashboard,
        allowed_hosts: Sequence[str] = (),
    ) -> None:
        self._secret = secret
        self._allowed_hosts = (*LOOPBACK_HOSTS, *allowed_hosts)
        self._files = {
            f"/{path.relative_to(_STATIC).as_posix()}": path
            for path in _STATIC.rglob("*")
            if path.suffix in _KINDS
        }
        run = store.run
        self._calls: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/api/poll": store.poll,
            "/api/document": lambda body: run(body["run"]).document(str(body["name"])),
            "/api/command": lambda body: run(body["run"]).ask(str(body["name"])),
            "/api/report": lambda _: {"page": make_report(store, dashboard)},
            "/api/settings": lambda _: {
                "folder": str(store.folder),
                "dashboard": dashboard.as_page_settings(),
            },
        }
        super().__init__(
            self._respond,
            _listen(port),
            name="Studio",
            headers=_HEADERS,
            max_body_bytes=MAX_BODY,
            idle_seconds=60.0,
        )
        if port and self.server_port != port:
            _logger.warning("Port %d is in use: Studio uses %d.", port, self.server_port)

    @property
    def url(self) -> str:
        """The address of the page, with the secret in its fragment, which no request carries."""
        return f"http://127.0.0.1:{self.server_port}/#{self._secret}"

    def _respond(self, request: Request) -> Response:
        host = request.headers.get("Host", "")
        # Jupyter's proxy passes on the host of its own address, which is not known here.
        is_proxied = "X-ProxyContextPath" in request.headers
        if not is_proxied and not is_host_allowed(host, self._allowed_hosts):
            text = f"The host {host[:80]!r} is unknown here. Name it in `allowed_hosts`."
            return refuse(HTTPStatus.MISDIRECTED_REQUEST, text)
        if request.method == "GET":
            response = self._read_file(request.path)
        elif request.method == "POST":
            response = self._call(request)
        else:
            return refuse(HTTPStatus.METHOD_NOT_ALLOWED, "Use GET or POST.", Allow="GET, POST")
        accepts_gzip = "gzip" in request.headers.get("Accept-Encoding", "")
        if len(response.body) < _LEAST_COMPRESSED or not accepts_gzip:
            return response
        body = gzip.compress(response.body, 3)
        return replace(response, body=body, headers={"Content-Encoding": "gzip"})

    def _read_file(self, path: str) -> Response:
        file = self._files.get("/index.html" if path == "/" else path)
        if file is None:
            return refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
        return Response(HTTPStatus.OK, file.read_bytes(), _KINDS[file.suffix])

    def _call(self, request: Request) -> Response:
        if request.body is None:
            return refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Send at most {MAX_BODY} bytes.")
        received = request.headers.get(HEADER, "").encode("latin-1")
        if not hmac.compare_digest(received, self._secret.encode()):
            text = "Open the address that Studio printed: its end, after #, is the key."
            return refuse(HTTPStatus.FORBIDDEN, text)
        call = self._calls.get(request.path)
        if call is None:
            return refuse(HTTPStatus.NOT_FOUND, "There is no such call.")
        try:
            answer = call(dict(json.loads(request.body or b"{}")))
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
            return refuse(HTTPStatus.BAD_REQUEST, text)
        except OSError as error:
            return refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"The run can't be read: {error}")
        text = json.dumps(answer, separators=(",", ":"), default=str)
        return Response(HTTPStatus.OK, text.encode())


def _listen(port: int) -> socket.socket:
    """Returns a socket that listens at the first free port from `port` on, or at any for 0."""
    if port > _LAST_PORT:
        raise InvalidInputError(f"`port` must be at most {_LAST_PORT}, received {port}.")
    last = min(port + _PORTS_TRIED - 1, _LAST_PORT) if port else 0
    for number in range(port, last + 1):
        try:
            return socket.create_server(("127.0.0.1", number))
        except OSError as error:
            reason = error
    raise InvalidInputError(
        f"No port from {port} to {last} can be opened: {reason}. Name another port."
    )
