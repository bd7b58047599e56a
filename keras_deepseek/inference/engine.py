"""The engine that users make: an `InProcessEngine`, and the servers in front of it.

What its arguments mean is said here; `http` and `grpc` listen.
"""

import os
import ssl
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.padding import Padding
from keras_deepseek.inference.grpc.grpc_server import GrpcServer
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.http_server import MAX_BODY_BYTES, HttpServer
from keras_deepseek.inference.in_process_engine import InProcessEngine
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.server.server import Server, stop_servers
from keras_deepseek.inference.server.termination import Interruption


class ServingEngine(InProcessEngine):
    """Serves a model: single requests in, batches through the model, answers out.

    With `batch_size="dynamic"` whatever waits is taken whenever the model is free: batches grow
    with the load. Where a short wait has turned out to fill batches and to make answers come
    sooner, rows are waited for, and no longer than that. With a number, a batch waits up to
    `max_wait` for that many rows. Batches are padded to powers of two (or to the fixed size) by
    repeating their last row.

    The engine starts at its first use, or by `start` or `with`. Starting runs the model once for
    every batch size that it will see, so that no request pays for compilation; that needs inputs
    whose axes are all fixed but the first, or `padding`. Other models with a free axis compile when
    its lengths are first met. A model that mixes the rows of a batch, so that answers depend on who
    shares it, is warned of.

    Args:
        model: A built `keras.Model`, or an `Executor`; or the path of a bundle, of a SavedModel's
            folder, of an `.onnx` file or a folder with `model.onnx`, or of a `.keras` file. Or the
            path of a folder of versions, as `"models/digits"` with the bundle or SavedModel
            `"models/digits/1"`: its newest version is served, also when it comes later. Or what
            `read_model_config` returns: several models, each with a folder of versions.
        name: string. The name in URLs; where there are several models, each has its own, and the
            first is the engine's own model. Defaults to `"model"`.
        version: integer. The number of this version. Defaults to `1`.
        batch_size: `"dynamic"`, or an integer up to `max_batch_size`. Defaults to `"dynamic"`.
        max_batch_size: integer. Rows of the largest batch; requests with more are run in parts.
            Defaults to `32`.
        max_wait: float. For a fixed `batch_size`: the seconds after its oldest request came when a
            batch leaves that is not full. Defaults to `0.005`.
        max_queue_rows: integer. Rows that may wait before requests are refused, and the most that
            one request may have. Defaults to `1024`.
        target_latency: float. Seconds within which requests are to be answered: batches are kept as
            small as that needs, and requests that would take longer are refused. Defaults to
            `None`: there is no such limit.
        replicas: integer. Threads that run the model, each with a batch of its own. What comes from
            a path is loaded as often; a live model or an `Executor` is called from all of them.
            Defaults to `1`.
        isolated: boolean. Whether each replica runs in a process of its own, which is started anew
            where it crashes or hangs: its batch is tried again, one request after the other.
            `model` is a path then, or `"package.module:function"`, which returns an `Executor`.
            Defaults to `False`.
        batch_timeout: float. Seconds after which a batch of such a process counts as hung. So long
            it may hold up others (`max_concurrent_batches`). Defaults to `60.0`.
        padding: `Padding`. What requests of unequal lengths are filled with, to share batches.
            Defaults to `None`: they don't.
        warm_up: boolean. Whether starting runs the model, for every batch size and to see that it
            does not mix rows. Defaults to `True`.
        cache_entries: integer. How many answers of each version are kept for inputs that come
            again: for models that always answer the same. Defaults to `0`: none.
        custom_objects_from: sequence of module names or `.py` files that define the custom classes
            of a `.keras` file. Defaults to `()`.
        max_concurrent_batches: integer. Batches that run at the same time, of all models together:
            of those that wait, the model that has had least of the machine is next. One that hangs
            keeps its place, for `batch_timeout` where it is isolated, else for ever. Defaults to
            `None`: each replica runs when it can.
        log_requests: The path of a file that a sample of the requests, and their answers, are
            written to (`RequestLog`). Defaults to `None`: none are.
        sample: float above 0, up to 1. The part of the requests that is written. Defaults to
            `0.01`.

    Raises:
        InvalidInputError: An argument is not one of these.
        NotSupportedError: The model takes one batch size alone, or no executor runs its format
            here.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=2) as engine:
    ...     engine.predict(np.zeros((1, 4), "float32"))
    array([[0., 0.]], dtype=float32)
    """

    def __init__(  # noqa: PLR0913 - one place says all about the engine's own model.
        self,
        model: Any,
        *,
        name: str = "model",
        version: int = 1,
        batch_size: int | Literal["dynamic"] = "dynamic",
        max_batch_size: int = 32,
        max_wait: float = 0.005,
        max_queue_rows: int = 1024,
        target_latency: float | None = None,
        replicas: int = 1,
        isolated: bool = False,
        batch_timeout: float = 60.0,
        padding: Padding | None = None,
        warm_up: bool = True,
        cache_entries: int = 0,
        custom_objects_from: Sequence[str | os.PathLike[str]] = (),
        max_concurrent_batches: int | None = None,
        log_requests: str | os.PathLike[str] | None = None,
        sample: float = 0.01,
    ) -> None:
        options = ModelOptions(
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            max_wait=max_wait,
            max_queue_rows=max_queue_rows,
            target_latency=target_latency,
            replicas=replicas,
            isolated=isolated,
            batch_timeout=batch_timeout,
            padding=padding,
            warm_up=warm_up,
            cache_entries=cache_entries,
            custom_objects_from=custom_objects_from,
        )
        super().__init__(
            model, name, version, options, max_concurrent_batches, log_requests, sample
        )
        self._servers: Sequence[Server] = ()
        self._grace_seconds: float | None = None

    @property
    def servers(self) -> Sequence[Server]:
        """The servers that `serve` has started."""
        return self._servers

    def close(self) -> None:
        """Becomes unready, answers what was accepted, and stops the servers. It can't be undone.

        Where there were servers, what is not answered within their `grace_seconds` gets a
        `ClosedError`, and a model that hangs is left to itself; else it is waited for.
        """
        if not self._begin_to_close():
            return
        start = time.monotonic()
        stop_servers(self._servers)
        grace = self._grace_seconds
        self._close_models(None if grace is None else start + grace - time.monotonic())
        self._close_request_log()

    def serve(  # noqa: PLR0913 - one place says all about the two ports.
        self,
        http_port: int = 8501,
        grpc_port: int | None = None,
        *,
        host: str = "127.0.0.1",
        tokens: Sequence[str] | os.PathLike[str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        grpc_credentials: Any = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        limits: HttpLimits | None = None,
        access_log: bool = False,
        traces: Any = False,
        block: bool = False,
    ) -> HttpServer:
        """Answers the calls of TF Serving and of Open Inference.

        The ports are taken first, then the engine starts; meanwhile clients are told that it is not
        ready.

        Args:
            http_port: integer. `0` takes a free one. Defaults to `8501`.
            grpc_port: integer, TF Serving's is 8500. Defaults to `None`: no gRPC.
            host: string. The address to listen at. Defaults to `"127.0.0.1"`: this machine alone.
            tokens: As in `HttpServer`. Defaults to `None`: anyone may ask.
            ssl_context: As in `HttpServer`. Defaults to `None`: no TLS.
            grpc_credentials: As `credentials` in `GrpcServer`. TLS is for both ports or for none.
                Defaults to `None`: no TLS.
            max_body_bytes: As in `HttpServer`, and for the messages of gRPC. Defaults to 64 MiB
                (`67108864`).
            limits: As in `HttpServer`; its `settle_seconds` and `grace_seconds` are gRPC's, too.
                Defaults to `None`: its own defaults.
            access_log: As in `HttpServer`. Defaults to `False`.
            traces: As in `HttpServer`. Defaults to `False`.
            block: boolean. Whether to return only when the servers were stopped: by `close`, or by
                Ctrl-C, SIGTERM or SIGHUP, after which what was accepted is answered. Defaults to
                `False`.

        Returns:
            The `HttpServer`, with its `url`. `servers` has the `GrpcServer`, too. `close` stops
            them.

        Raises:
            InvalidInputError: A port is taken, or the address is none of this machine's.
            MissingExtraError: The packages of the extra `serving`, of `grpc`, or of
                `telemetry`, are not installed.
        """
        self._check_open()
        if grpc_port is not None and (ssl_context is None) != (grpc_credentials is None):
            raise InvalidInputError(
                "TLS is for both ports or for none: give `ssl_context` and `grpc_credentials`, of "
                "the same files, by `make_server_context` and `make_grpc_credentials`."
            )
        limits = limits or HttpLimits()
        notes = {"tokens": tokens, "access_log": access_log, "traces": traces}
        http = HttpServer(
            self,
            host,
            http_port,
            max_body_bytes=max_body_bytes,
            ssl_context=ssl_context,
            limits=limits,
            **notes,
        )
        servers: list[Server] = [http]
        if grpc_port is not None:
            grpc = GrpcServer(
                self,
                host,
                grpc_port,
                max_message_bytes=max_body_bytes,
                credentials=grpc_credentials,
                settle_seconds=limits.settle_seconds,
                grace_seconds=limits.grace_seconds,
                **notes,
            )
            servers.append(grpc)
        self._grace_seconds = max(limits.grace_seconds, self._grace_seconds or 0.0)
        self._start_servers(servers)
        if block:
            with Interruption() as interruption:
                interruption.wait(http.ended)
            if interruption.has_come:
                stop_servers(servers)
        return http

    def __enter__(self) -> "ServingEngine":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start_servers(self, servers: Sequence[Server]) -> None:
        """Lets them listen, then starts the engine; of what fails nothing stays."""
        try:
            for server in servers:
                server.start()
            self._servers = [*self._servers, *servers]
            self.start()
        except BaseException:
            stop_servers(servers)
            self._servers = [server for server in self._servers if server not in servers]
            raise
