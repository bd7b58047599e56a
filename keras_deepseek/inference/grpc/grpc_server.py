"""Listens for gRPC.

`grpc.aio` speaks with the clients; what the methods answer stands in `grpc_application`.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.inference.arguments import check_count, check_seconds
from keras_deepseek.inference.grpc.calls_in_flight import CallsInFlight
from keras_deepseek.inference.server.engine import Engine
from keras_deepseek.inference.server.server import Serve, Server

MAX_MESSAGE_BYTES = 64 * 2**20
"""Larger requests are refused, as larger bodies are over HTTP."""

_PROBE_MILLISECONDS = 60_000
_PROBE_TIMEOUT_MILLISECONDS = 30_000
_HANDSHAKE_MILLISECONDS = 10_000
_CLIENT_PROBE_MILLISECONDS = 10_000


class GrpcServer(Server):
    """One gRPC server in front of an engine, for the clients of TF Serving and of Open Inference.

    `ServingEngine.serve(grpc_port=8500)` makes and starts one; make it yourself to choose more.

    Args:
        engine: `ServingEngine`. Until it is ready, requests are answered with UNAVAILABLE.
        host: string. The address to listen at. Defaults to `"127.0.0.1"`: this machine alone.
        port: integer. `0` takes a free one. Defaults to `8500`.
        max_message_bytes: integer. Larger requests are answered with RESOURCE_EXHAUSTED, also those
            that come compressed and would be inflated to more. Defaults to 64 MiB (`67108864`).
        credentials: `grpc.ServerCredentials`, as `grpc.ssl_server_credentials` makes them, to speak
            TLS. With `require_client_auth=True` clients without a certificate that they trust are
            turned away. Defaults to `None`: plain connections.
        tokens: As in `HttpServer`; a call shows one in its metadata, `authorization`. Calls for
            health need none. Defaults to `None`: anyone may ask.
        access_log: As in `HttpServer`. Defaults to `False`.
        traces: As in `HttpServer`. Defaults to `False`.
        settle_seconds: float. That a stopping server still reads calls, to answer them with
            UNAVAILABLE, so that clients go elsewhere before it hangs up. Defaults to `0.2`.
        grace_seconds: float. That a stopping server then waits for requests in flight. Defaults to
            `30.0`.

    Example:

    >>> import keras
    >>> from keras_deepseek.inference import ServingEngine
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=1) as engine:
    ...     server = GrpcServer(engine, port=0, grace_seconds=5)
    ...     server.start()
    ...     print(server.ready)
    ...     server.stop()
    True
    """

    def __init__(
        self,
        engine: Engine,
        host: str = "127.0.0.1",
        port: int = 8500,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        credentials: Any = None,
        tokens: Sequence[str] | os.PathLike[str] | None = None,
        access_log: bool = False,
        traces: Any = False,
        settle_seconds: float = 0.2,
        grace_seconds: float = 30.0,
    ) -> None:
        check_count("max_message_bytes", max_message_bytes)
        check_seconds("settle_seconds", settle_seconds)
        check_seconds("grace_seconds", grace_seconds)
        super().__init__(
            engine,
            host,
            port,
            scheme="grpc",
            is_secure=credentials is not None,
            tokens=tokens,
            access_log=access_log,
            traces=traces,
        )
        self.max_message_bytes = max_message_bytes
        self.settle_seconds = settle_seconds
        self.grace_seconds = grace_seconds
        self._credentials = credentials
        self.calls = CallsInFlight()
        self._streams: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def ends_when_stopping(self, task: asyncio.Task[None]) -> Iterator[None]:
        """Cancels a task, inside of `with`, when the server begins to stop.

        Args:
            task: `asyncio.Task`. What reads a stream that its client may keep open for ever.
        """
        self._streams.add(task)
        if self.is_stopping:
            task.cancel()
        try:
            yield
        finally:
            self._streams.discard(task)

    def _prepare(self) -> Serve:
        try:
            import google.protobuf.message  # noqa: F401 - Its absence is told now.
            import grpc.aio
        except ImportError as error:
            package = "protobuf" if (error.name or "").startswith("google") else "grpcio"
            raise MissingExtraError(package, "grpc", "to serve over gRPC") from error
        from keras_deepseek.inference.grpc.grpc_application import GrpcApplication

        if not isinstance(self._credentials, grpc.ServerCredentials | None):
            raise InvalidInputError(
                f"Received credentials={self._credentials!r}. Expected what "
                "`grpc.ssl_server_credentials` returns, or `None`."
            )
        # Refuses an address in the system's words, which gRPC keeps for its log.
        self._bind().close()
        options = (
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # A client whose machine is gone does not hang up: it is asked from time to time.
            ("grpc.keepalive_time_ms", _PROBE_MILLISECONDS),
            ("grpc.keepalive_timeout_ms", _PROBE_TIMEOUT_MILLISECONDS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            # Clients may ask as well: gRPC would cut off who does so more than every five minutes.
            ("grpc.http2.min_ping_interval_without_data_ms", _CLIENT_PROBE_MILLISECONDS),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MILLISECONDS),
        )
        return partial(
            self._serve,
            lambda: grpc.aio.server(handlers=[GrpcApplication(self)], options=options),
        )

    async def _serve(self, make_server: Callable[[], Any], listens: "Future[int]") -> None:
        server = make_server()
        try:
            if self._credentials is None:
                port = server.add_insecure_port(self.target)
            else:
                port = server.add_secure_port(self.target, self._credentials)
        except RuntimeError as error:
            raise self._no_address(error) from error
        await server.start()
        listens.set_result(port)
        await self.stopping.wait()
        for task in list(self._streams):
            task.cancel()
        await asyncio.sleep(self.settle_seconds)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.grace_seconds
        # Told to stop amid calls, gRPC hangs up behind the last answer, which is lost where the
        # client has not read it. With none in flight it waits for the client's word.
        await self.calls.end(self.grace_seconds)
        await server.stop(max(0.0, deadline - loop.time()))
