"""The gRPC server, on top of `grpc.aio`. `grpc_application` answers its calls."""

import asyncio
import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.inference.arguments import check_seconds
from keras_deepseek.inference.server.engine import Engine
from keras_deepseek.inference.server.model_control import ModelControlMode
from keras_deepseek.inference.server.server import Serve, Server, no_address

MAX_MESSAGE_BYTES = 64 * 2**20
"""The size of the largest request. HTTP has the same limit for bodies."""

_PACKAGES = {
    "google": "protobuf",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
}

_MAX_CALLS = 4096
"""Calls of all connections at a time. Further ones end with RESOURCE_EXHAUSTED."""

_MAX_STREAMS = 2 * _MAX_CALLS
"""Open streams of one connection. gRPC resets further ones.

Clients must not come near it: a client sends its next call when it has read an answer, and to the
server the answered call is still open. So this is above `_MAX_CALLS`, which refuses calls earlier.
"""

_PROBE_MILLISECONDS = 60_000
_PROBE_TIMEOUT_MILLISECONDS = 30_000
_HANDSHAKE_MILLISECONDS = 10_000
_CLIENT_PROBE_MILLISECONDS = 10_000
_HOLD_SECONDS = 0.05
_GOAWAY_SECONDS = 0.02


class GrpcServer(Server):
    """A gRPC server for an engine, which clients of TF Serving and of Open Inference can call.

    `ServingEngine.serve(grpc_port=8500)` makes and starts one. Make it yourself to set options that
    `serve` doesn't have.

    Args:
        engine: `ServingEngine`. Until it is ready, requests are answered with UNAVAILABLE.
        host: string. The address to listen at. Defaults to `"127.0.0.1"`: this machine only.
        port: integer. `0` takes a free one. Defaults to `8500`.
        max_message_bytes: integer. Larger requests are answered with RESOURCE_EXHAUSTED. For a
            compressed request the limit holds for its size after decompression. Defaults to 64 MiB
            (`67108864`).
        credentials: `grpc.ServerCredentials` for TLS, as `grpc.ssl_server_credentials` makes them.
            With its `require_client_auth=True`, clients need a trusted certificate. Defaults to
            `None`: connections without encryption.
        tokens: As in `HttpServer`. A call sends its token in the metadata `authorization`; health
            checks need none. Defaults to `None`: no token is required.
        access_log: As in `HttpServer`. Defaults to `False`.
        traces: As in `HttpServer`. Defaults to `False`.
        model_control: As in `HttpServer`, also for TF Serving's `HandleReloadConfigRequest`.
            Defaults to `"none"`.
        management_tokens: As in `HttpServer`. Defaults to `None`.
        max_connections: integer. Open connections. Above it, new ones are refused. Defaults to
            `4096`.
        connection_seconds: float. The age from which a connection takes no further calls, by chance
            up to a tenth earlier or later, so that clients connect anew and reach new servers. Its
            calls are answered, and it stays open as long as a stream is. Defaults to `inf`:
            connections may stay open.
        settle_seconds: float. Seconds that a stopping server still accepts and answers calls, while
            its health is NOT_SERVING, so that clients turn to another server. Defaults to `0.2`.
        grace_seconds: float. Seconds that a stopping server then waits for requests in flight.
            Defaults to `30.0`.

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

    def __init__(  # noqa: PLR0913 - all options of a server.
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
        model_control: ModelControlMode = "none",
        management_tokens: Sequence[str] | os.PathLike[str] | None = None,
        max_connections: int = 4096,
        connection_seconds: float = math.inf,
        settle_seconds: float = 0.2,
        grace_seconds: float = 30.0,
    ) -> None:
        check_integer("max_message_bytes", max_message_bytes)
        check_integer("max_connections", max_connections)
        if connection_seconds != math.inf:
            check_seconds("connection_seconds", connection_seconds)
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
            model_control=model_control,
            management_tokens=management_tokens,
        )
        self.max_message_bytes = max_message_bytes
        self.max_connections = max_connections
        self.connection_seconds = connection_seconds
        self.settle_seconds = settle_seconds
        self.grace_seconds = grace_seconds
        self._credentials = credentials
        self._held_back: asyncio.Event | None = None
        self._streams: set[asyncio.Task[None]] = set()

    async def wait_to_answer(self) -> None:
        """Waits, shortly before the connections close, until their clients have been told."""
        if self._held_back is not None:
            await self._held_back.wait()

    @contextlib.contextmanager
    def ends_when_stopping(self, task: asyncio.Task[None]) -> Iterator[None]:
        """Context manager that cancels a task when a stopping server closes its connections.

        Args:
            task: `asyncio.Task`. It reads a stream that the client may keep open forever.
        """
        self._streams.add(task)
        if self._held_back is not None:
            task.cancel()
        try:
            yield
        finally:
            self._streams.discard(task)

    def _prepare(self) -> Serve:
        try:
            import google.protobuf.message  # noqa: F401 - Its absence is an error now, not later.
            import grpc.aio
            import grpc_health.v1  # noqa: F401
            import grpc_reflection.v1alpha  # noqa: F401
        except ImportError as error:
            package = _PACKAGES.get((error.name or "").partition(".")[0], "grpcio")
            raise MissingExtraError(package, "grpc", "to serve over gRPC") from error
        from keras_deepseek.inference.grpc.grpc_application import GrpcApplication

        if not isinstance(self._credentials, grpc.ServerCredentials | None):
            raise InvalidInputError(
                "`credentials` must be a `grpc.ServerCredentials`, as `make_grpc_credentials` "
                f"returns it, or None; received {self._credentials!r}."
            )
        # Fails with the system's message if the address is taken. gRPC only logs that message.
        self._bind().close()
        options: tuple[tuple[str, int], ...] = (
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            ("grpc.max_concurrent_streams", _MAX_STREAMS),
            # Finds clients whose machine is gone: they do not close their connections.
            ("grpc.keepalive_time_ms", _PROBE_MILLISECONDS),
            ("grpc.keepalive_timeout_ms", _PROBE_TIMEOUT_MILLISECONDS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            # Without this gRPC cuts off clients that ping more than once in five minutes.
            ("grpc.http2.min_ping_interval_without_data_ms", _CLIENT_PROBE_MILLISECONDS),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MILLISECONDS),
        )
        if self.connection_seconds != math.inf:
            age = ("grpc.max_connection_age_ms", max(1, round(1000 * self.connection_seconds)))
            options = (*options, age)
        return partial(
            self._serve,
            lambda: grpc.aio.server(
                handlers=[GrpcApplication(self)],
                options=options,
                maximum_concurrent_rpcs=_MAX_CALLS,
            ),
        )

    async def _serve(self, make_server: Callable[[], Any], listens: "Future[int]") -> None:
        from keras_deepseek.inference.grpc.grpc_application import SERVICES
        from keras_deepseek.inference.grpc.standard_services import add_standard_services

        server = make_server()
        try:
            if self._credentials is None:
                port = server.add_insecure_port(self.target)
            else:
                port = server.add_secure_port(self.target, self._credentials)
        except RuntimeError as error:
            raise no_address(self.host, self.port, error) from error
        names = [service.name for service in SERVICES]
        health = add_standard_services(server, self, names)
        await server.start()
        following = asyncio.create_task(health.follow())
        listens.set_result(port)
        await self.stopping.wait()
        await health.update()
        await asyncio.sleep(self.settle_seconds)
        # When gRPC stops, it cancels each call that it has not passed on yet: a client that sends
        # the next call right after an answer loses it. So the answers are held back until all such
        # clients wait for one, and gRPC has told them (GOAWAY) to send no more on this connection.
        self._held_back = asyncio.Event()
        for task in list(self._streams):
            task.cancel()
        await asyncio.sleep(_HOLD_SECONDS)
        stopping = asyncio.create_task(server.stop(self.grace_seconds))
        await asyncio.sleep(_GOAWAY_SECONDS)
        self._held_back.set()
        await stopping
        following.cancel()
