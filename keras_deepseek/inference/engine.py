"""The engine: models, and the servers in front of them.

`model_host` holds the models, `executors` compute, `batcher` groups, `http` and `grpc` listen; this
file sends requests from one to the other.
"""

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Unpack

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.arguments import check_option_names
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.future_delivery import Answer, open_future
from keras_deepseek.inference.batching.loop_delivery import Settle, Waiter, open_waiter
from keras_deepseek.inference.batching.padding import Padding
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.grpc.grpc_server import GrpcServer
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.http_server import MAX_BODY_BYTES, HttpServer
from keras_deepseek.inference.models.model_host import ModelHost
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.monitoring.request_log import RequestLog
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.request_options import RequestOptions
from keras_deepseek.inference.server.server import Server, stop_servers
from keras_deepseek.inference.server.termination import Interruption


class ServingEngine(ModelHost):
    """Serves a model: single requests in, batches through the model, answers out.

    With `batch_size="dynamic"` whatever waits is taken whenever the model is free: batches grow
    with the load. Where a short wait has turned out to fill batches and to make answers come
    sooner, rows are waited for, and no longer than that. With a number, a batch waits up to
    `max_wait` for that many rows. Batches are padded to powers of two (or to the fixed size) by
    repeating their last row.

    The engine starts at its first use, or by `start` or `with`. Starting runs the model once for
    every batch size that it will see, so that no request pays for compilation; that needs inputs
    whose axes are all fixed but the first, or `padding`. Other models with a free axis compile when
    its lengths are first met.

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
        warm_up: boolean. Whether starting runs the model for every batch size. Defaults to `True`.
        cache_entries: integer. How many answers of each version are kept for inputs that come
            again: for models that always answer the same. Defaults to `0`: none.
        custom_objects_from: sequence of module names or `.py` files that define the custom classes
            of a `.keras` file. Defaults to `()`.
        max_concurrent_batches: integer. Batches that run at the same time, of all models together:
            of those that wait, the model that has had least of the machine is next. One that hangs
            keeps its place, for `batch_timeout` where it is isolated, else for ever. Defaults to
            `None`: each replica runs when it can.
        log_requests: The path of a file that a sample of the requests, and their answers, are
            written to (`RequestLog`), for `replay_requests`. Defaults to `None`: none are.
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
        # Before the model: what is wrong with it is said before anything is loaded.
        self._request_log = None if log_requests is None else RequestLog(log_requests, sample)
        try:
            super().__init__(model, name, version, options, max_concurrent_batches)
        except BaseException:
            self._close_request_log()
            raise
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

    def predict(self, x: Any, **options: Unpack[RequestOptions]) -> Any:
        """Returns the model's outputs for `x`; blocks until they are there.

        Args:
            x: An array, or nested lists, where the model has one input; else a mapping by input
                name, or a sequence in the order of the inputs. Rows first: any number of them.
            **options: `RequestOptions`.

        Returns:
            A NumPy array where the model has one output, else a dict of arrays by output name.

        Raises:
            InvalidInputError: `x` does not fit the model's inputs, or has more rows than may wait;
                or there is no such option.
            OverloadedError: Too many rows are waiting, or it could not be answered in time.
            DeadlineExceededError: The answer was not there within `timeout`.
            ClosedError: The engine was closed.
        """
        self.start()
        return _unwrap(self.submit(x, **options).result())

    async def predict_async(self, x: Any, **options: Unpack[RequestOptions]) -> Any:
        """Returns what `predict` returns, without blocking the event loop.

        Cancelling the call takes the request out of the queue.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.
        """
        if not self.ready:
            await asyncio.to_thread(self.start)
        return _unwrap(await self.submit_async(x, **options))

    def submit(self, x: Any, **options: Unpack[RequestOptions]) -> Answer:
        """Puts `x` in the queue of a started engine.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.

        Returns:
            A `concurrent.futures.Future` of a dict of arrays by output name. Cancelling it takes
            the request out of the queue.
        """
        check_option_names(options)
        answer, deliver = open_future()
        cancel, _ = self._submit(lambda signature: signature.bind(x), deliver, options)
        answer.add_done_callback(lambda answer: cancel() if answer.cancelled() else None)
        return answer

    def submit_async(self, x: Any, **options: Unpack[RequestOptions]) -> Waiter:
        """Puts `x` in the queue of a started engine, for the running event loop to await.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.

        Returns:
            An `asyncio.Future` of a dict of arrays by output name.
        """
        check_option_names(options)
        return self.dispatch_async(lambda signature: signature.bind(x), **options)[0]

    def dispatch_async(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        trace: RequestTrace | None = None,
        **options: Unpack[RequestOptions],
    ) -> tuple[Waiter, ModelVersion]:
        """Does what `submit_async` does, for inputs that are read by the version's signature.

        Args:
            bind: As in `dispatch`.
            trace: As in `dispatch`. Defaults to `None`.
            **options: `RequestOptions`.

        Returns:
            An `asyncio.Future` of a dict of arrays by output name, and the `ModelVersion`.
        """
        waiter, settle = open_waiter()
        cancel, version = self.dispatch(bind, settle, trace, **options)
        waiter.add_done_callback(lambda waiter: cancel() if waiter.cancelled() else None)
        return waiter, version

    def dispatch(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        settle: Settle,
        trace: RequestTrace | None = None,
        **options: Unpack[RequestOptions],
    ) -> tuple[Callable[[], None], ModelVersion]:
        """Does what `dispatch_async` does at less cost: there is no future.

        Args:
            bind: Function from the `Signature` of the version that will answer to arrays by input
                name, checked against it. It is called again where that version is closed meanwhile.
            settle: Function that the running event loop calls with the `Request`, once its
                `outputs` or its `error` is there: all of a batch in one turn of the loop.
            trace: `RequestTrace`. Is told who answers. Defaults to `None`.
            **options: `RequestOptions`.

        Returns:
            A function that takes the request out of the queue, and the `ModelVersion`.
        """
        return self._submit(bind, self._delivery.to_loop(settle), options, trace)

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

    def _close_request_log(self) -> None:
        if self._request_log is not None:
            self._request_log.close()

    def _submit(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        deliver: Callable[[Request], None],
        options: RequestOptions,
        trace: RequestTrace | None = None,
    ) -> tuple[Callable[[], None], ModelVersion]:
        """Puts a request in a version's queue; returns what takes it out, and the version."""
        if not self.ready:
            self._check_open()
            raise ClosedError(f"The model {self.name!r} is not ready: call `start` first.")
        name, number = options.get("model"), options.get("version")
        label, client = options.get("label", ""), options.get("client")
        while True:
            served = self._find_model(name)
            version = served.find(number, label)
            if trace is not None:
                trace.model, trace.version = version.name, str(version.number)
            try:
                inputs = bind(version.signature)
                request = version.submit(
                    inputs,
                    deliver
                    if self._request_log is None
                    else self._request_log.watch(version.name, version.number, inputs, deliver),
                    timeout=options.get("timeout"),
                    priority=options.get("priority", 0),
                    client=client,
                    # Else what is on trial by share would hardly be asked.
                    use_cache=number is not None or label != "" or not served.on_trial,
                )
            except ClosedError:
                # It was closed since it was found: another may have taken its place.
                if self.find(name, number, label) is version:
                    raise
            else:
                if trace is not None:
                    trace.request = request
                return partial(version.cancel, request, client), version


def _unwrap(outputs: dict[str, Array]) -> Any:
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs
