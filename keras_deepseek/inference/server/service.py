"""An engine as one server offers it: what the handlers of HTTP and gRPC get."""

import asyncio
import contextlib
from collections.abc import Iterator

from keras_deepseek.inference.dispatcher import Dispatcher
from keras_deepseek.inference.errors import ClosedError, NotPermittedError
from keras_deepseek.inference.monitoring.access_log import AccessLog
from keras_deepseek.inference.monitoring.request_traces import RequestTraces
from keras_deepseek.inference.protocols.shared_memory import SharedMemory
from keras_deepseek.inference.server.http_limits import HttpLimits
from keras_deepseek.inference.server.server_options import ServerOptions
from keras_deepseek.inference.server.tokens import ModelControl, TokenCheck, is_loopback


class Service:
    """An engine as one server offers it: with its options, tokens, access log and traces.

    `ServingEngine.serve` and `asgi_app` make one. Make one yourself for a server at another
    address: each `HttpServer` and each `GrpcServer` needs its own.

    Args:
        engine: `ServingEngine`. Until it is ready, requests are answered with the status 503, over
            gRPC with UNAVAILABLE.
        options: `ServerOptions`. Defaults to `None`: the defaults of `ServerOptions`.

    Example:

    >>> import keras
    >>> from keras_deepseek.inference import ServingEngine
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=1) as engine:
    ...     Service(engine, ServerOptions(tokens=["a-long-random-token"])).ready
    True
    """

    def __init__(self, engine: Dispatcher, options: ServerOptions | None = None) -> None:
        options = ServerOptions() if options is None else options
        self.engine = engine
        self.options = options
        self.limits = options.limits or HttpLimits()
        self.tokens = None if options.tokens is None else TokenCheck(options.tokens)
        self.model_control = ModelControl(options.model_control, options.management_tokens)
        self.access_log = AccessLog() if options.access_log else None
        self.traces = RequestTraces(options.traces) if options.traces else None
        self.address = (options.host, 0)
        """The host and the port at which its server listens."""
        self.has_server = False
        self.is_unready = False
        self.is_stopping = False
        self._streams: set[asyncio.Task[None]] = set()
        self._ends_streams = False

    @property
    def ready(self) -> bool:
        """True if health checks may answer that the server is ready.

        There is a model, and neither server nor engine is starting or stopping. Requests that come
        to a stopping server are answered nevertheless.
        """
        engine = self.engine
        has_model = any(served.versions for served in engine.models.values())
        return engine.ready and has_model and not self.is_unready and not self.is_stopping

    def check_ready(self, model: str) -> None:
        """Raises `ClosedError` if the engine is starting or stopping."""
        if not self.engine.ready:
            raise ClosedError(f"The model {model!r} is not ready: it is starting or stopping.")

    def open_shared_memory(self, client: str) -> SharedMemory:
        """Returns the regions of shared memory for the client at an IP address.

        Raises `NotPermittedError` for one of another machine, and if shared memory is off.
        """
        if not self.options.shared_memory:
            raise NotPermittedError(
                "This server does not use shared memory. Start it with --shared-memory to allow "
                "that."
            )
        if not is_loopback(client):
            raise NotPermittedError(
                "Shared memory is for clients that call this server directly from its machine, at "
                f"127.0.0.1 or ::1; received a request from {client or 'behind a proxy'!r:.100}."
            )
        return self.engine.shared_memory

    @contextlib.contextmanager
    def ends_when_stopping(self, task: "asyncio.Task[None]") -> Iterator[None]:
        """Context manager that cancels a task, and ends its block, when the server stops.

        Args:
            task: `asyncio.Task`. It reads a stream that the client may keep open forever.
        """
        self._streams.add(task)
        if self._ends_streams:
            task.cancel()
        try:
            yield
        except asyncio.CancelledError:
            if not self.is_stopping:
                raise
        finally:
            self._streams.discard(task)

    def end_streams(self) -> None:
        """Cancels the tasks of `ends_when_stopping`, on the event loop of the server."""
        self._ends_streams = True
        for task in list(self._streams):
            task.cancel()

    def close(self) -> None:
        """Writes the rest of the access log and of the traces."""
        for notes in (self.access_log, self.traces):
            if notes is not None:
                notes.close()
