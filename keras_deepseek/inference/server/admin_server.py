"""The admin port: health and metrics alone, over plain HTTP and without a token.

It answers on threads of its own, so that it needs neither the event loop of a server nor an engine.
"""

import json
import logging
from http import HTTPStatus

from keras_deepseek.artifacts.network_address import join_address
from keras_deepseek.http_server import Request, Response, SmallHttpServer, refuse
from keras_deepseek.inference.dispatcher import Dispatcher
from keras_deepseek.inference.models.served_model import find_waiting
from keras_deepseek.inference.server.server import NOT_READY, listen

_logger = logging.getLogger(__name__)

_PATHS = "The admin port has /metrics, /healthz, /v2/health/live and /v2/health/ready."


class AdminServer:
    """Answers `/v2/health/live`, `/v2/health/ready`, `/healthz` and `/metrics`.

    `/monitoring/prometheus/metrics`, TF Serving's path, is `/metrics`, too. The server may start
    before there is an engine: then it is not ready, and `/metrics` has the process.
    """

    def __init__(self, host: str, port: int, engine: Dispatcher | None = None) -> None:
        self.host = host
        self.port = port
        self.engine = engine
        self._http: SmallHttpServer | None = None

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
        listener = listen(self.host, self.port)
        self._http = SmallHttpServer(self._respond, listener, headers={"Connection": "close"})
        self.port = self._http.server_port
        self._http.start()
        _logger.info("Health and metrics are at %s.", self.url)

    def stop(self) -> None:
        """Frees the port."""
        if self._http is not None:
            self._http.stop()
            self._http = None

    def _respond(self, request: Request) -> Response:
        if request.method != "GET":
            return refuse(HTTPStatus.METHOD_NOT_ALLOWED, f"Use GET. {_PATHS}", Allow="GET, HEAD")
        if request.path in ("/metrics", "/monitoring/prometheus/metrics"):
            return self._read_metrics(request.headers.get("accept", ""))
        is_ready = self.ready
        waiting = find_waiting({} if self.engine is None else self.engine.models)
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        status, content = {
            "/v2/health/live": (HTTPStatus.OK, {"live": True}),
            "/v2/health/ready": (status, {"ready": is_ready}),
            "/healthz": (
                status,
                {"status": "ready", **waiting} if is_ready else {"error": NOT_READY},
            ),
        }.get(request.path, (HTTPStatus.NOT_FOUND, {"error": _PATHS}))
        return Response(status, json.dumps(content, separators=(",", ":")).encode())

    def _read_metrics(self, accept: str) -> Response:
        try:
            from keras_deepseek.inference.server.metrics import write_metrics
        except ImportError:
            message = "Not installed: pip install 'keras_deepseek[serving]'."
            return refuse(HTTPStatus.NOT_IMPLEMENTED, message)
        return Response(HTTPStatus.OK, *write_metrics(self.engine, accept))
