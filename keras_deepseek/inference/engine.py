"""The engine that users make: a repository of models, a dispatcher of requests, and servers.

Its arguments and methods are documented here. `ModelRepository` and `Dispatcher` do the work.
"""

import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Unpack

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.batch_totals import BatchStatistics
from keras_deepseek.inference.batching.future_delivery import Answer
from keras_deepseek.inference.batching.loop_delivery import Settle, Waiter
from keras_deepseek.inference.batching.padding import Padding
from keras_deepseek.inference.dispatcher import Dispatcher
from keras_deepseek.inference.grpc.grpc_server import GrpcServer
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.http_server import MAX_BODY_BYTES, HttpServer
from keras_deepseek.inference.models.model_folder import ModelFolder, Policy
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.model_repository import ModelRepository
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.served_model import ServedModel
from keras_deepseek.inference.monitoring.request_log import RequestLog
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.request_options import RequestOptions
from keras_deepseek.inference.server.server import Server, stop_servers
from keras_deepseek.inference.server.termination import Interruption


class ServingEngine:
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
        # The log first: a wrong path is reported before a model is loaded.
        log = None if log_requests is None else RequestLog(log_requests, sample)
        try:
            self.repository = ModelRepository(model, name, version, options, max_concurrent_batches)
        except BaseException:
            if log is not None:
                log.close()
            raise
        self.dispatcher = Dispatcher(self.repository, log)
        self.name = self.repository.name
        self.options = options
        self.monitor = self.repository.monitor
        self._servers: Sequence[Server] = ()
        self._grace_seconds: float | None = None

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The served models by name."""
        return self.repository.models

    @property
    def folders(self) -> Sequence[ModelFolder]:
        """The folders that are followed."""
        return self.repository.folders

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and outputs of the engine's own model."""
        return self.find().signature

    @property
    def ready(self) -> bool:
        """True if requests are answered: the engine is started and not closing."""
        return self.repository.state == "ready"

    @property
    def servers(self) -> Sequence[Server]:
        """The servers that `serve` has started."""
        return self._servers

    def start(self) -> None:
        """Warms the models up and starts the threads that run it. Nothing is done the second time.

        Raises:
            ClosedError: The engine was closed.
        """
        self.repository.start()

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
        return self.dispatcher.predict(x, **options)

    async def predict_async(self, x: Any, **options: Unpack[RequestOptions]) -> Any:
        """Returns what `predict` returns, without blocking the event loop.

        Cancelling the call takes the request out of the queue.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.
        """
        return await self.dispatcher.predict_async(x, **options)

    def submit(self, x: Any, **options: Unpack[RequestOptions]) -> Answer:
        """Puts `x` in the queue of a started engine.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.

        Returns:
            A `concurrent.futures.Future` of a dict of arrays by output name. Cancelling it takes
            the request out of the queue.
        """
        return self.dispatcher.submit(x, **options)

    def submit_async(self, x: Any, **options: Unpack[RequestOptions]) -> Waiter:
        """Puts `x` in the queue of a started engine, for the running event loop to await.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.

        Returns:
            An `asyncio.Future` of a dict of arrays by output name.
        """
        return self.dispatcher.submit_async(x, **options)

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
        return self.dispatcher.dispatch_async(bind, trace, **options)

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
        return self.dispatcher.dispatch(bind, settle, trace, **options)

    def load(
        self,
        model: Any,
        *,
        name: str | None = None,
        version: int | None = None,
        share: float | None = None,
        keep: int | None = 1,
        options: ModelOptions | None = None,
    ) -> ModelVersion:
        """Serves another model, or another version of one, when it is loaded and warm.

        Until then, requests go to the versions that there are, and where it fails nothing has
        changed for them: why is remembered in `ServedModel.failed`, and nothing of the model.
        Afterwards the oldest versions, beyond `keep` others, answer what they have accepted and
        are closed.

        Args:
            model: As in the constructor.
            name: string. Defaults to `None`: the engine's own model.
            version: integer. One that is there is replaced. Defaults to `None`: one more than the
                newest, of those that failed, too.
            share: float from 0 to 1. The part of the requests for this model that go to this
                version while it is on trial (`ServedModel.set_share`). Defaults to `None`: it is
                not on trial, and takes all of them if it is the newest.
            keep: integer. How many versions stay, this one among them and those on trial not.
                Defaults to `1`; `None`: all.
            options: `ModelOptions`. Defaults to `None`: those of the engine.

        Returns:
            The `ModelVersion`.

        Raises:
            InvalidInputError: The model is nothing that can be served, or an argument does not fit.
            ClosedError: The engine was closed.
        """
        return self.repository.load(
            model, name=name, version=version, share=share, keep=keep, options=options
        )

    def follow(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str,
        versions: Policy = 1,
        poll_seconds: float = 1.0,
        options: ModelOptions | None = None,
    ) -> None:
        """Serves the versions that a folder holds, as they come and go.

        Args:
            folder: A path, as `"models/digits"` with the bundles or SavedModels `"models/digits/1"`
                and so on.
            name: string. The model's name.
            versions: integer: the newest so many; `"all"`; or a sequence of numbers. Defaults to
                `1`.
            poll_seconds: float. How long it waits between two looks. Defaults to `1.0`.
            options: `ModelOptions`. Defaults to `None`: those of the engine.

        Raises:
            InvalidInputError: The folder holds none of these versions, or an argument does not fit.
        """
        self.repository.follow(
            folder, name=name, versions=versions, poll_seconds=poll_seconds, options=options
        )

    def replace_folders(
        self, folders: Sequence[ModelFolder], labels: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Serves what these folders hold, and no other model.

        All of it is loaded and warm before anything changes for requests; where that fails,
        nothing does. A folder that is followed already, in the same way, is not loaded again.

        Args:
            folders: sequence of `ModelFolder`, each of a name of its own, none of them empty.
            labels: mapping from each name to versions by label, all of them among those wanted.

        Raises:
            LoadFailedError: A version could not be loaded, or did not warm up. Why is logged.
            ClosedError: The engine was closed.
        """
        self.repository.replace_folders(folders, labels)

    def unload(self, name: str | None = None, version: int | None = None) -> None:
        """Closes a version, or all of a model, when what was accepted is answered.

        Args:
            name: string. Defaults to `None`: the engine's own model.
            version: integer. Defaults to `None`: all of them, and the model with them.

        Raises:
            ModelNotFoundError: There is no such model or version.
        """
        self.repository.unload(name, version)

    def find(
        self, name: str | None = None, version: int | None = None, label: str = ""
    ) -> ModelVersion:
        """Returns the version that a question is about: what it takes, how it does.

        Args:
            name: string. Defaults to `None`: the engine's own model.
            version: integer. Defaults to `None`: the newest that is not on trial. Where a request
                goes, which may be one on trial, `ServedModel.find` says.
            label: string. In place of a version. Defaults to `""`.

        Raises:
            ModelNotFoundError: There is no such model, version or label.
        """
        return self.repository.find(name, version, label)

    def statistics(self, model: str | None = None, version: int | None = None) -> BatchStatistics:
        """Returns how many batches and rows were run, and why the last batches left.

        Args:
            model: string. The model's name. Defaults to `None`: the engine's own.
            version: integer. Defaults to `None`: the newest that is not on trial.
        """
        return self.find(model, version).statistics()

    def close(self) -> None:
        """Becomes unready, answers what was accepted, and stops the servers. It can't be undone.

        Where there were servers, what is not answered within their `grace_seconds` gets a
        `ClosedError`, and a model that hangs is left to itself; else it is waited for.
        """
        if not self.repository.begin_to_close():
            return
        start = time.monotonic()
        stop_servers(self._servers)
        grace = self._grace_seconds
        self.repository.close_models(None if grace is None else start + grace - time.monotonic())
        self.dispatcher.close()

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
        self.repository.check_open()
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
