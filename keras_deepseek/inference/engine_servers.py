"""The servers that `ServingEngine.serve` makes, and the wait for their end."""

import contextlib
import gc
import logging
import os
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_addresses
from keras_deepseek.inference.grpc.grpc_server import GrpcServer
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.http_server import HttpServer
from keras_deepseek.inference.server.engine import Engine
from keras_deepseek.inference.server.model_control import ModelControlMode
from keras_deepseek.inference.server.open_files import most_connections
from keras_deepseek.inference.server.server import Server, stop_servers
from keras_deepseek.inference.server.termination import Interruption

_logger = logging.getLogger(__name__)

COLLECTION_OBJECTS = 20_000
"""More than the requests have that fit in the time that a full queue may take."""


def make_servers(  # noqa: PLR0913 - all options of the two ports.
    engine: Engine,
    http_port: int,
    grpc_port: int | None,
    admin_port: int | None,
    *,
    host: str,
    tokens: Sequence[str] | os.PathLike[str] | None,
    ssl_context: ssl.SSLContext | None,
    grpc_credentials: Any,
    max_body_bytes: int,
    limits: HttpLimits,
    access_log: bool,
    traces: Any,
    model_control: ModelControlMode,
    management_tokens: Sequence[str] | os.PathLike[str] | None,
) -> tuple[HttpServer, *tuple[Server, ...]]:
    """Returns the HTTP server, and the gRPC server if it has a port. They are not started."""
    if grpc_port is None and grpc_credentials is not None:
        raise InvalidInputError(
            "Received `grpc_credentials` without `grpc_port`. Give a port, as in grpc_port=8500."
        )
    if grpc_port is not None and (ssl_context is None) != (grpc_credentials is None):
        raise InvalidInputError(
            "Received TLS for one port only. Give both `ssl_context` and `grpc_credentials`, made "
            "from the same files by `make_server_context` and `make_grpc_credentials`."
        )
    check_addresses(host, http_port, grpc_port, admin_port)
    ports = 1 if grpc_port is None else 2
    limits = replace(limits, max_connections=most_connections(limits.max_connections, ports))
    http = HttpServer(
        engine,
        host,
        http_port,
        max_body_bytes=max_body_bytes,
        ssl_context=ssl_context,
        limits=limits,
        tokens=tokens,
        access_log=access_log,
        traces=traces,
        model_control=model_control,
        management_tokens=management_tokens,
    )
    if grpc_port is None:
        return (http,)
    grpc = GrpcServer(
        engine,
        host,
        grpc_port,
        max_message_bytes=max_body_bytes,
        credentials=grpc_credentials,
        tokens=tokens,
        access_log=access_log,
        traces=traces,
        model_control=model_control,
        management_tokens=management_tokens,
        max_connections=limits.max_connections,
        connection_seconds=limits.connection_seconds,
        settle_seconds=limits.settle_seconds,
        grace_seconds=limits.grace_seconds,
    )
    return http, grpc


def describe_servers(engine: Engine, servers: Sequence[Server]) -> str:
    """Returns a line with the names of the models and the URLs of an HTTP and a gRPC server."""
    http, *other_servers = servers
    path = "" if len(engine.models) > 1 else f"/v1/models/{engine.name}"
    urls = [http.url + path, *(server.url for server in other_servers)]
    return f"Serving {', '.join(map(repr, engine.models))} at {' and '.join(urls)}"


def wait_until_stopped(engine: Engine, servers: Sequence[Server], unready_seconds: float) -> None:
    """Prints the URLs. Returns when the servers have ended, or stops them after a signal."""
    with (
        Interruption() as interruption,
        rare_collections(),
        unready_after_signal(servers, unready_seconds, interruption),
    ):
        print(describe_servers(engine, servers), flush=True)
        interruption.wait(servers[0].ended)
    if interruption.has_come:
        stop_servers(servers)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Context manager in which garbage is collected rarely, for a process that only serves.

    By default the objects of one batch of requests start a collection, though they are no garbage.
    Every hundredth may look at all objects of the process, and nobody is answered for 50 ms.
    """
    objects, *older_thresholds = gc.get_threshold()
    gc.set_threshold(objects and max(objects, COLLECTION_OBJECTS), *older_thresholds)
    try:
        yield
    finally:
        gc.set_threshold(objects, *older_thresholds)


@contextlib.contextmanager
def unready_after_signal(
    servers: Sequence[Server], seconds: float, interruption: Interruption
) -> Iterator[None]:
    """Context manager that makes servers unready for some seconds when a signal ends its block.

    The next signal ends that time.
    """
    try:
        yield
    except KeyboardInterrupt:
        _logger.info("A signal has come. Unready for %g s, then requests in flight end.", seconds)
        for server in servers:
            server.announce_unready()
        interruption.wait_for_another(servers[0].ended, seconds)
        raise
