"""A server of gRPC for the real clients, around functions from bytes to bytes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest


@pytest.fixture
def serve_grpc() -> Iterator[Callable[..., str]]:
    """Answers calls on loopback by functions from bytes to bytes, as a server will."""
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    with ExitStack() as stack:

        def serve(service: str, **calls: Callable[[bytes], bytes]) -> str:
            def handler(call: Callable[[bytes], bytes]) -> Any:
                return grpc.unary_unary_rpc_method_handler(lambda data, context: call(data))

            server = grpc.server(ThreadPoolExecutor(1))
            handlers = {name: handler(call) for name, call in calls.items()}
            server.add_generic_rpc_handlers(
                [grpc.method_handlers_generic_handler(service, handlers)]
            )
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            stack.callback(lambda: server.stop(None).wait())
            return f"127.0.0.1:{port}"

        yield serve
