"""Listens for gRPC on a thread of its own.

`grpc.aio` speaks with the clients; what the methods answer stands in `grpc_application`.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from keras_deepseek.artifacts.errors import InvalidInputError, MissingExtraError
from keras_deepseek.inference.arguments import check_address, check_count, check_seconds
from keras_deepseek.inference.event_loop import call_in, loop_factory
from keras_deepseek.inference.termination import wait_heeding_signals
from keras_deepseek.inference.tokens import TokenCheck, warn_of_strangers

if TYPE_CHECKING:
    from keras_deepseek.inference.engine import ServingEngine

MAX_MESSAGE_BYTES = 64 * 2**20
"""Larger requests are refused, as larger bodies are over HTTP."""

_PROBE_MILLISECONDS = 60_000
_PROBE_TIMEOUT_MILLISECONDS = 30_000
_HANDSHAKE_MILLISECONDS = 10_000
_CLIENT_PROBE_MILLISECONDS = 10_000


class GrpcServer:
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
        engine: "ServingEngine",
        host: str = "127.0.0.1",
        port: int = 8500,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        credentials: Any = None,
        tokens: Sequence[str] | os.PathLike[str] | None = None,
        settle_seconds: float = 0.2,
        grace_seconds: float = 30.0,
    ) -> None:
        check_address(host, port)
        check_count("max_message_bytes", max_message_bytes)
        check_seconds("settle_seconds", settle_seconds)
        check_seconds("grace_seconds", grace_seconds)
        self.engine = engine
        self.host = host
        self.port = port
        self.max_message_bytes = max_message_bytes
        self.settle_seconds = settle_seconds
        self.grace_seconds = grace_seconds
        self.is_stopping = False
        self.stopping = asyncio.Event()
        self.tokens = None if tokens is None else TokenCheck(tokens)
        self._credentials = credentials
        self._streams: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._tell_to_stop: Callable[[], object] = lambda: None

    @property
    def target(self) -> str:
        """The address that gRPC's clients use, as in `"127.0.0.1:8500"`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address with what is spoken there, as in `"grpc://127.0.0.1:8500"`."""
        return f"{'grpc' if self._credentials is None else 'grpcs'}://{self.target}"

    @property
    def ready(self) -> bool:
        """Whether requests are answered: neither the server nor the engine starts or stops."""
        return self.engine.ready and not self.is_stopping

    def start(self) -> None:
        """Returns when the server listens.

        Raises:
            InvalidInputError: The port is taken, or the address is none of this machine's; or
                `credentials` are none.
            MissingExtraError: The packages of the extra `grpc` are not installed.
        """
        make_server = self._prepare()
        self._check_port()
        listens: Future[int] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(make_server, listens), name="grpc", daemon=True
        )
        self._ended.clear()
        self._thread.start()
        try:
            self.port = listens.result()
        except BaseException:
            self._thread.join()
            raise
        if self.tokens is None and self._credentials is None:
            warn_of_strangers(self.host)

    def wait(self) -> None:
        """Returns when the server has stopped."""
        if self._thread is not None:
            # Python 3.11 takes a thread for ended when a signal interrupts `join`.
            wait_heeding_signals(self._ended)
            self._thread.join()

    def stop(self) -> None:
        """Becomes unready, answers the requests in flight, and returns when the port is free.

        After `grace_seconds` what is still in flight is dropped.
        """
        self.is_stopping = True
        self._tell_to_stop()
        self.wait()

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

    def _prepare(self) -> Callable[[], Any]:
        """Returns what makes the server, on the event loop that it will run on."""
        try:
            import google.protobuf.message  # noqa: F401 - Its absence is told now.
            import grpc.aio
        except ImportError as error:
            package = "protobuf" if (error.name or "").startswith("google") else "grpcio"
            raise MissingExtraError(package, "grpc", "to serve over gRPC") from error
        from keras_deepseek.inference.grpc_application import GrpcApplication

        if not isinstance(self._credentials, grpc.ServerCredentials | None):
            raise InvalidInputError(
                f"Received credentials={self._credentials!r}. Expected what "
                "`grpc.ssl_server_credentials` returns, or `None`."
            )
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
        return lambda: grpc.aio.server(handlers=[GrpcApplication(self)], options=options)

    def _check_port(self) -> None:
        """Refuses an address by the system's own words, which gRPC keeps for its log."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            socket.create_server((self.host, self.port), family=family).close()
        except OSError as error:
            raise self._no_address(error) from error

    def _no_address(self, error: Exception) -> InvalidInputError:
        return InvalidInputError(
            f"Can't listen at {self.host!r} on port {self.port}: {error}. "
            "Choose another port, or 0 for a free one."
        )

    def _run(self, make_server: Callable[[], Any], listens: "Future[int]") -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            try:
                runner.run(self._serve(make_server, listens))
            except BaseException as error:
                if listens.done():
                    raise
                listens.set_exception(error)
            finally:
                self._ended.set()

    async def _serve(self, make_server: Callable[[], Any], listens: "Future[int]") -> None:
        loop = asyncio.get_running_loop()
        server = make_server()
        try:
            if self._credentials is None:
                port = server.add_insecure_port(self.target)
            else:
                port = server.add_secure_port(self.target, self._credentials)
        except RuntimeError as error:
            raise self._no_address(error) from error
        await server.start()
        self._tell_to_stop = lambda: call_in(loop, self.stopping.set)
        listens.set_result(port)
        await self.stopping.wait()
        for task in list(self._streams):
            task.cancel()
        # From then on gRPC drops what it has not handed over yet, with the status CANCELLED.
        await asyncio.sleep(self.settle_seconds)
        await server.stop(self.grace_seconds)
