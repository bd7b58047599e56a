"""The gRPC server, on top of `grpc.aio`. `grpc_application` answers its calls."""

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.server.grpc_packages import check_grpc_packages
from keras_deepseek.inference.server.server import Serve, Server, listen, no_address
from keras_deepseek.inference.server.server_options import DEFAULT_GRPC_PORT
from keras_deepseek.inference.server.service import Service

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_application import GrpcApplication

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
_HOLD_SECONDS = 0.05  # In this time all clients come to wait for an answer that is held back.
_GOAWAY_SECONDS = 0.02  # In this time gRPC tells all clients to send no more.


class GrpcServer(Server):
    """A gRPC server that listens for a service, for clients of TF Serving and of Open Inference.

    `ServingEngine.serve(grpc_port=8500)` makes and starts one. Make one yourself for a second
    address or port.

    Args:
        service: `Service`, which no other server has. Its `ServerOptions` say where it listens.

    Example:

    >>> import keras
    >>> from keras_deepseek.inference import ServerOptions, Service, ServingEngine
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=1) as engine:
    ...     server = GrpcServer(Service(engine, ServerOptions(grpc_port=0)))
    ...     server.start()
    ...     print(server.ready)
    ...     server.stop()
    True
    """

    def __init__(self, service: Service) -> None:
        options = service.options
        port = DEFAULT_GRPC_PORT if options.grpc_port is None else options.grpc_port
        is_secure = options.grpc_credentials is not None
        super().__init__(service, port, scheme="grpc", is_secure=is_secure)

    def _prepare(self) -> Serve:
        check_grpc_packages()
        import grpc.aio

        from keras_deepseek.inference.grpc.grpc_application import GrpcApplication

        limits, options = self.service.limits, self.service.options
        credentials = options.grpc_credentials
        if not isinstance(credentials, grpc.ServerCredentials | None):
            raise InvalidInputError(
                "`grpc_credentials` must be a `grpc.ServerCredentials`, as `make_grpc_credentials` "
                f"returns it, or None; received {credentials!r}."
            )
        # Fails with the system's message if the address is taken. gRPC only logs that message.
        listen(self.host, self.port).close()
        settings: tuple[tuple[str, int], ...] = (
            ("grpc.so_reuseport", 0),  # No other process may listen at the same port.
            ("grpc.max_receive_message_length", options.max_body_bytes),
            ("grpc.max_send_message_length", -1),  # No limit.
            ("grpc.max_allowed_incoming_connections", limits.max_connections),
            ("grpc.max_concurrent_streams", _MAX_STREAMS),
            # Finds clients whose machine is gone: they do not close their connections.
            ("grpc.keepalive_time_ms", _PROBE_MILLISECONDS),
            ("grpc.keepalive_timeout_ms", _PROBE_TIMEOUT_MILLISECONDS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),  # No limit.
            # Without this gRPC cuts off clients that ping more than once in five minutes.
            ("grpc.http2.min_ping_interval_without_data_ms", _CLIENT_PROBE_MILLISECONDS),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MILLISECONDS),
        )
        if limits.connection_seconds != math.inf:
            age = ("grpc.max_connection_age_ms", max(1, round(1000 * limits.connection_seconds)))
            settings = (*settings, age)
        application = GrpcApplication(self.service)
        return partial(
            self._serve,
            application,
            lambda: grpc.aio.server(
                handlers=[application], options=settings, maximum_concurrent_rpcs=_MAX_CALLS
            ),
        )

    async def _serve(
        self,
        application: "GrpcApplication",
        make_server: Callable[[], Any],
        listens: "Future[int]",
    ) -> None:
        from keras_deepseek.inference.grpc.grpc_application import SERVICES
        from keras_deepseek.inference.grpc.standard_services import add_standard_services

        service, server = self.service, make_server()
        credentials = service.options.grpc_credentials
        try:
            if credentials is None:
                port = server.add_insecure_port(self.target)
            else:
                port = server.add_secure_port(self.target, credentials)
        except RuntimeError as error:
            raise no_address(self.host, self.port, error) from error
        names = [protocol_service.name for protocol_service in SERVICES]
        health = add_standard_services(server, service, names)
        await server.start()
        health_updates = asyncio.create_task(health.follow())
        listens.set_result(port)
        await self.stopping.wait()
        await health.update()
        await asyncio.sleep(service.limits.settle_seconds)
        # When gRPC stops, it cancels each call that it has not passed on yet: a client that sends
        # the next call right after an answer loses it. So the answers are held back until all such
        # clients wait for one, and gRPC has told them (GOAWAY) to send no more on this connection.
        application.hold_answers()
        service.end_streams()
        await asyncio.sleep(_HOLD_SECONDS)
        stopping = asyncio.create_task(server.stop(service.limits.grace_seconds))
        await asyncio.sleep(_GOAWAY_SECONDS)
        application.release_answers()
        await stopping
        health_updates.cancel()
