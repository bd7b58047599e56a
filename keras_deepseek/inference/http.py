"""Listens for HTTP on a thread of its own. What the paths answer stands in `http_application`."""

import asyncio
import socket
import threading
from typing import TYPE_CHECKING

from keras_deepseek.artifacts.errors import InvalidInputError, MissingExtraError
from keras_deepseek.inference.arguments import check_address

if TYPE_CHECKING:
    import uvicorn

    from keras_deepseek.inference.engine import ServingEngine

MAX_BODY_BYTES = 64 * 2**20
"""Larger requests are refused: a tensor of 64 MiB of JSON wants another protocol."""

GRACE_SECONDS = 30
"""How long a stopping server waits for requests in flight, those of slow senders included."""


class HttpServer:
    """One HTTP server in front of an engine.

    `ServingEngine.serve` makes and starts one; make it yourself to choose `max_body_bytes`.

    Args:
        engine: `ServingEngine`. Until it is ready, requests are answered with the status 503.
        host: string. The address to listen at. Defaults to `"127.0.0.1"`: this machine alone.
        port: integer. `0` takes a free one. Defaults to `8501`.
        max_body_bytes: integer. Larger requests are answered with the status 413. Defaults to 64
            MiB (`67108864`).

    Example:

    >>> import keras
    >>> from keras_deepseek.inference import ServingEngine
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=1) as engine:
    ...     server = HttpServer(engine, port=0, max_body_bytes=100_000)
    ...     server.start()
    ...     print(server.ready)
    ...     server.stop()
    True
    """

    def __init__(
        self,
        engine: "ServingEngine",
        host: str = "127.0.0.1",
        port: int = 8501,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        check_address(host, port)
        self.engine = engine
        self.host = host
        self.port = port
        self.max_body_bytes = max_body_bytes
        self._is_stopping = False
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address that clients use, as in `"http://127.0.0.1:8501"`."""
        return (
            f"http://[{self.host}]:{self.port}"
            if ":" in self.host
            else f"http://{self.host}:{self.port}"
        )

    @property
    def ready(self) -> bool:
        """Whether requests are answered: neither the server nor the engine starts or stops."""
        return self.engine.ready and not self._is_stopping

    def start(self) -> None:
        """Returns when the server listens.

        Raises:
            InvalidInputError: The port is taken, or the address is none of this machine's.
            MissingExtraError: The packages of the extra `serving` are not installed.
        """
        self._server = self._make_server()
        listener = self._listen()
        self.port = listener.getsockname()[1]
        # uvicorn handles signals on the main thread only, so here it leaves them alone.
        self._thread = threading.Thread(
            target=self._run, args=(self._server, listener), name="http", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Returns when the server has stopped."""
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Becomes unready, answers the requests in flight, and returns when the port is free."""
        self._is_stopping = True
        if self._server is not None:
            self._server.should_exit = True
        self.wait()

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=2048)
        except OSError as error:
            raise InvalidInputError(
                f"Can't listen at {self.host!r} on port {self.port}: {error}. "
                "Choose another port, or 0 for a free one."
            ) from error

    def _make_server(self) -> "uvicorn.Server":
        try:
            import httptools  # noqa: F401 - uvicorn imports it by name.
            import uvicorn

            from keras_deepseek.inference.http_application import build_application
        except ImportError as error:
            package = (error.name or "uvicorn").split(".")[0]
            raise MissingExtraError(package, "serving", "to serve over HTTP") from error

        config = uvicorn.Config(
            build_application(self),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        config.load()
        return uvicorn.Server(config)

    @staticmethod
    def _run(server: "uvicorn.Server", listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))
