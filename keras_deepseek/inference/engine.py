"""The engine that users make: a repository of models, a dispatcher of requests, and servers.

Its arguments and methods are documented here. `ModelRepository` and `Dispatcher` do the work.
"""

import contextlib
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.checks import check_boolean
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.batch_totals import BatchStatistics
from keras_deepseek.inference.batching.delivery import Answer, Settle, Waiter
from keras_deepseek.inference.batching.padding import Padding
from keras_deepseek.inference.dispatcher import Dispatcher
from keras_deepseek.inference.engine_servers import make_servers, wait_until_stopped
from keras_deepseek.inference.http.http_application import HttpApplication
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.http_server import MAX_BODY_BYTES, HttpServer
from keras_deepseek.inference.model_download import fetch_model, is_uri
from keras_deepseek.inference.models.model_folder import ModelFolder, Policy
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.model_repository import ModelRepository
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.served_model import ServedModel
from keras_deepseek.inference.monitoring.request_log import DEFAULT_SAMPLE, RequestLog
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.request_options import RequestOptions
from keras_deepseek.inference.server.admin_server import AdminServer
from keras_deepseek.inference.server.model_control import ModelControlMode
from keras_deepseek.inference.server.server import Server, stop_servers
from keras_deepseek.stderr_log import log_warnings_to_stderr


class ServingEngine:
    """Serves models: groups single requests into batches, runs them, and answers each.

    With `batch_size="dynamic"` a free model takes all requests that wait, so batches grow with the
    load. The engine waits for more requests only if past batches show that a short wait fills
    batches and makes answers come sooner, and no longer than that. With a number as `batch_size`, a
    batch waits up to `max_wait` seconds for that many rows. Batches are padded to powers of two (or
    to the fixed size) by repeating their last row.

    The engine starts at its first use, or by `start` or `with`. Starting runs the model once for
    every batch size, so that no request waits for compilation. That needs inputs whose axes are all
    fixed except the first, or `padding`. Other models with a free axis compile when a length comes
    for the first time. The engine warns of a model that mixes the rows of a batch, because its
    answers depend on the other requests of the batch.

    Args:
        model: A built `keras.Model`, or an `Executor`; or the path of a bundle, of a SavedModel's
            folder, of an `.onnx` file or a folder with `model.onnx`, or of a `.keras` file. Or the
            path of a folder of versions, as `"models/digits"` with the bundle or SavedModel
            `"models/digits/1"`: its newest version is served, also if it is added later. Or the
            result of `read_model_config`: several models, each with a folder of versions. Or the
            URI of a model, which is downloaded (`fetch_model`).
        name: string. The name in URLs. The models of a model config have their own names, and the
            first is the engine's own model. Defaults to `"model"`.
        version: integer. The number of this version. Defaults to `1`.
        batch_size: `"dynamic"`, or an integer up to `max_batch_size`. Defaults to `"dynamic"`.
        max_batch_size: integer. The rows of the largest batch. A request with more rows runs in
            several batches. Defaults to `32`.
        max_wait: float. With a fixed `batch_size` alone: seconds after the arrival of its oldest
            request when a batch runs that is not full. Defaults to `None`: 0.005 seconds.
        max_queue_rows: integer. The rows that may wait before requests are refused, and the most
            rows of one request. Defaults to `None`: 1,024, and more while they are expected to be
            answered within 5 seconds and take at most 256 MiB with their answers, 1 MiB for one
            request.
        target_latency: float. Seconds within which requests should be answered. Batches are kept
            small enough for that, and requests that would take longer are refused. Defaults to
            `None`: requests without a timeout are refused only if more come than the model can
            answer. The queue has then not been empty for the time of four full batches, and at
            least 0.2 s, and the request would wait longer than that.
        replicas: integer. The number of threads that run the model, each with its own batch. A path
            is loaded once for each replica; a live model or an `Executor` is called from all
            threads. Defaults to `1`.
        isolated: boolean. If `True`, each replica runs in its own process. A process that crashes
            or hangs is restarted, and its batch is retried one request at a time. `model` must be a
            path, or `"package.module:function"`, which returns an `Executor`. Defaults to `False`.
        batch_timeout: float. Seconds after which a batch of an isolated replica counts as hung. It
            may block others for that time (`max_concurrent_batches`). Defaults to `60.0`.
        padding: `Padding`. How to pad requests of different lengths, so that they can share
            batches. Defaults to `None`: they don't share batches.
        warm_up: boolean. If `True`, starting runs the model for every batch size, and checks that
            it does not mix rows. Defaults to `True`.
        cache_entries: integer. The number of answers that are cached for each version, for models
            that always give the same answer for the same inputs. Defaults to `0`: no cache.
        custom_objects_from: sequence of module names or `.py` files that define the custom classes
            of a `.keras` file. Defaults to `()`.
        threads: integer. The number of CPU threads that compute a batch of one replica. The threads
            of TensorFlow, PyTorch and JAX belong to the process: set them for its first model, or
            use `isolated`. Defaults to `None`: as many as the runtime chooses.
        max_concurrent_batches: integer. The number of batches that run at the same time, for all
            models together. If several models wait, the one that has used least time is next. A
            batch that hangs keeps its place: for `batch_timeout` if it is isolated, else for ever.
            Defaults to `None`: each replica runs whenever it can.
        log_requests: The path of a file for a sample of the requests and their answers
            (`RequestLog`). Defaults to `None`: nothing is written.
        sample: float above 0, up to 1. The fraction of the requests that is written. Defaults to
            `0.01`.

    Raises:
        InvalidInputError: An argument has a wrong type or value.
        NotSupportedError: The model's batch size is fixed, or no executor runs its format here.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=2) as engine:
    ...     engine.predict(np.zeros((1, 4), "float32"))
    array([[0., 0.]], dtype=float32)
    """

    def __init__(  # noqa: PLR0913 - all options of the engine's own model.
        self,
        model: Any,
        *,
        name: str = "model",
        version: int = 1,
        batch_size: int | Literal["dynamic"] = "dynamic",
        max_batch_size: int = 32,
        max_wait: float | None = None,
        max_queue_rows: int | None = None,
        target_latency: float | None = None,
        replicas: int = 1,
        isolated: bool = False,
        batch_timeout: float = 60.0,
        padding: Padding | None = None,
        warm_up: bool = True,
        cache_entries: int = 0,
        custom_objects_from: Sequence[str | os.PathLike[str]] = (),
        threads: int | None = None,
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
            threads=threads,
        )
        if log_requests is None and sample != DEFAULT_SAMPLE:
            raise InvalidInputError(
                f"Received sample={sample!r} without `log_requests`. Add the path of the file to "
                "write the sample to, as in log_requests='requests.jsonl'."
            )
        model = fetch_model(model) if is_uri(model) else model
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
        self._admin_servers: list[AdminServer] = []
        self._grace_seconds: float | None = None

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The served models by name. An unknown name raises a `ModelNotFoundError`."""
        return self.repository.models

    @property
    def folders(self) -> Sequence[ModelFolder]:
        """The followed folders."""
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
        """Warms the models up and starts the threads that run them. A second call does nothing.

        Raises:
            ClosedError: The engine was closed.
        """
        self.repository.start()

    def predict(self, x: Any, **options: Unpack[RequestOptions]) -> Any:
        """Returns the model's outputs for `x`. Blocks until they are computed.

        Args:
            x: The inputs, rows first, with any number of rows. For a model with one input: an array
                or nested lists. Else a mapping by input name, or a sequence in the order of the
                inputs.
            **options: `RequestOptions`.

        Returns:
            A NumPy array if the model has one output, else a dict of arrays by output name.

        Raises:
            InvalidInputError: `x` does not fit the model's inputs or has too many rows, or an
                option is unknown.
            OverloadedError: Too many rows are waiting, or the request can't be answered in time.
            DeadlineExceededError: The answer was not ready within `timeout`.
            ClosedError: The engine was closed.
        """
        return self.dispatcher.predict(x, **options)

    async def predict_async(self, x: Any, **options: Unpack[RequestOptions]) -> Any:
        """Returns the same as `predict`, without blocking the event loop.

        Cancelling the call removes the request from the queue.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.
        """
        return await self.dispatcher.predict_async(x, **options)

    def submit(self, x: Any, **options: Unpack[RequestOptions]) -> Answer:
        """Queues a request of a started engine.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.

        Returns:
            A `concurrent.futures.Future` of a dict of arrays by output name. Cancelling it removes
            the request from the queue.
        """
        return self.dispatcher.submit(x, **options)

    def submit_async(self, x: Any, **options: Unpack[RequestOptions]) -> Waiter:
        """Queues a request of a started engine, for the running event loop to await.

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
        """Queues a request whose inputs are read with the signature of the version that answers it.

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
        """Queues a request as `dispatch_async` does, at less cost: it makes no future.

        Args:
            bind: Function from the `Signature` of the version that will answer to arrays by input
                name, checked against it. It is called again if that version is closed meanwhile.
            settle: Function of the `Request`. The running event loop calls it when the request has
                `outputs` or an `error`: for all requests of a batch in one turn of the loop.
            trace: `RequestTrace`. The model and the version are written to it. Defaults to `None`.
            **options: `RequestOptions`.

        Returns:
            A function that removes the request from the queue, and the `ModelVersion`.
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
        """Loads and warms up another model, or another version of a model, then serves it.

        Until it is ready, requests go to the existing versions. If loading fails, nothing changes
        for requests, and `ServedModel.failed` keeps the reason. After loading, the oldest versions,
        beyond `keep`, answer their accepted requests and are closed.

        Args:
            model: As in the constructor.
            name: string. Defaults to `None`: the engine's own model.
            version: integer. An existing version with this number is replaced. Defaults to `None`:
                one more than the newest, counting versions that failed.
            share: float from 0 to 1. The fraction of the model's requests that go to this version
                while it is on trial (`ServedModel.set_share`). Defaults to `None`: it is not on
                trial, and takes all requests if it is the newest.
            keep: integer. The number of versions that stay, including this one and not counting
                versions on trial. Defaults to `1`; `None`: all.
            options: `ModelOptions`. Defaults to `None`: the options of the engine.

        Returns:
            The `ModelVersion`.

        Raises:
            InvalidInputError: The model can't be served, or an argument is wrong.
            ClosedError: The engine was closed.
        """
        model = fetch_model(model) if is_uri(model) else model
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
        """Serves the versions in a folder, and loads and closes versions as the folder changes.

        Args:
            folder: A path, as `"models/digits"` with the bundles or SavedModels `"models/digits/1"`
                and so on.
            name: string. The model's name.
            versions: integer: how many of the newest; `"all"`; or a sequence of numbers. Defaults
                to `1`.
            poll_seconds: float. Seconds between two looks at the folder. Defaults to `1.0`.
            options: `ModelOptions`. Defaults to `None`: the options of the engine.

        Raises:
            InvalidInputError: The folder holds none of these versions, or an argument is wrong.
        """
        self.repository.follow(
            folder, name=name, versions=versions, poll_seconds=poll_seconds, options=options
        )

    def replace_folders(
        self, folders: Sequence[ModelFolder], labels: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Serves the models of these folders, and no others.

        All of them are loaded and warm before anything changes for requests. If one fails, nothing
        changes. A folder that is followed already, in the same way, is not loaded again.

        Args:
            folders: sequence of `ModelFolder`, each with its own name, none of them empty.
            labels: mapping from each name to versions by label, all of them among the wanted
                versions.

        Raises:
            LoadFailedError: A version could not be loaded or warmed up. The reason is logged.
            ClosedError: The engine was closed.
        """
        self.repository.replace_folders(folders, labels)

    def unload(self, name: str | None = None, version: int | None = None) -> None:
        """Closes a version, or a whole model, when its accepted requests are answered.

        Args:
            name: string. Defaults to `None`: the engine's own model.
            version: integer. Defaults to `None`: all versions, and the model with them.

        Raises:
            ModelNotFoundError: There is no such model or version.
        """
        self.repository.unload(name, version)

    def find(
        self, name: str | None = None, version: int | None = None, label: str = ""
    ) -> ModelVersion:
        """Returns a version of a model, to read its signature or its state.

        Args:
            name: string. Defaults to `None`: the engine's own model.
            version: integer. Defaults to `None`: the newest that is not on trial. A request may go
                to a version on trial instead (`ServedModel.find`).
            label: string. A label to find the version by, instead of its number. Defaults to `""`.

        Raises:
            ModelNotFoundError: There is no such model, version or label.
        """
        return self.repository.find(name, version, label)

    def statistics(self, model: str | None = None, version: int | None = None) -> BatchStatistics:
        """Returns the numbers of batches and rows, and why the last batches left the queue.

        Args:
            model: string. The model's name. Defaults to `None`: the engine's own.
            version: integer. Defaults to `None`: the newest that is not on trial.
        """
        return self.find(model, version).statistics()

    def close(self) -> None:
        """Stops the servers, refuses new requests, and answers the accepted ones, for good.

        If there are servers, requests that are not answered within their `grace_seconds` get a
        `ClosedError`, and a model that hangs is abandoned. Without servers, `close` waits for it.
        """
        start = time.monotonic()
        stop_servers(self._servers)  # They answer what comes on open connections meanwhile.
        if not self.repository.begin_to_close():
            return
        grace = self._grace_seconds
        self.repository.close_models(None if grace is None else start + grace - time.monotonic())
        self.dispatcher.close()
        for admin in self._admin_servers:
            admin.stop()

    def serve(  # noqa: PLR0913 - all options of the two ports.
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
        model_control: ModelControlMode = "none",
        management_tokens: Sequence[str] | os.PathLike[str] | None = None,
        admin_port: int | None = None,
        block: bool = False,
    ) -> HttpServer:
        """Starts servers for the calls of TF Serving and of Open Inference.

        The ports are opened first, then the engine starts. Until then clients are told that it is
        not ready.

        Args:
            http_port: integer. `0` takes a free one. Defaults to `8501`.
            grpc_port: integer. TF Serving's is 8500. Defaults to `None`: no gRPC.
            host: string. The address to listen at. Defaults to `"127.0.0.1"`: this machine alone.
            tokens: As in `HttpServer`. Defaults to `None`: no token is needed.
            ssl_context: As in `HttpServer`. Defaults to `None`: no TLS.
            grpc_credentials: As `credentials` in `GrpcServer`. TLS is for both ports or for none.
                Defaults to `None`: no TLS.
            max_body_bytes: As in `HttpServer`, and for the messages of gRPC. Defaults to 64 MiB
                (`67108864`).
            limits: As in `HttpServer`. Its `max_connections`, `connection_seconds`,
                `unready_seconds`, `settle_seconds` and `grace_seconds` hold for gRPC, too. Defaults
                to `None`: the defaults of `HttpLimits`.
            access_log: As in `HttpServer`. Defaults to `False`.
            traces: As in `HttpServer`. Defaults to `False`.
            model_control: As in `HttpServer` and `GrpcServer`. Defaults to `"none"`.
            management_tokens: As in `HttpServer`. Defaults to `None`.
            admin_port: integer. A port that answers health checks and `/metrics` alone, without TLS
                and without a token, from before the models are loaded to after the servers have
                stopped. `0` takes a free one. Defaults to `None`: there is none.
            block: boolean. If `True`, `serve` prints the URLs, and returns when the servers were
                stopped: by `close`, or by Ctrl-C, SIGTERM or SIGHUP, after `unready_seconds` and
                when the accepted requests are answered. The log's warnings go to the standard
                error, if no handler takes them. Defaults to `False`.

        Returns:
            The `HttpServer`, with its `url`. `servers` has the `GrpcServer`, too. `close` stops
            them.

        Raises:
            InvalidInputError: A port is taken, the address does not belong to this machine, or an
                argument is wrong.
            MissingExtraError: The packages of the extra `serving`, of `grpc`, or of `telemetry`,
                are not installed.
        """
        self.repository.check_open()
        check_boolean("block", block)
        limits = HttpLimits() if limits is None else limits
        servers = make_servers(
            self,
            http_port,
            grpc_port,
            admin_port,
            host=host,
            tokens=tokens,
            ssl_context=ssl_context,
            grpc_credentials=grpc_credentials,
            max_body_bytes=max_body_bytes,
            limits=limits,
            access_log=access_log,
            traces=traces,
            model_control=model_control,
            management_tokens=management_tokens,
        )
        self._grace_seconds = max(limits.grace_seconds, self._grace_seconds or 0.0)
        if admin_port is not None:
            admin = AdminServer(host, admin_port, self)
            admin.start()
            self._admin_servers.append(admin)
        with log_warnings_to_stderr() if block else contextlib.nullcontext():
            self._start_servers(servers)
            if block:
                wait_until_stopped(self, servers, limits.unready_seconds)
        return servers[0]

    def asgi_app(
        self,
        *,
        tokens: Sequence[str] | os.PathLike[str] | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        access_log: bool = False,
        traces: Any = False,
        model_control: ModelControlMode = "none",
        management_tokens: Sequence[str] | os.PathLike[str] | None = None,
    ) -> HttpApplication:
        """Returns the HTTP server's application, for any server of ASGI 3.

        Choose it to mount the models in an application of FastAPI or Starlette, to put another
        server before them, or to test a client without a port. `serve` has more to offer an open
        port: it limits the times and the number of connections, stops without losing requests, and
        notices at less cost that a client has hung up.

        A server with ASGI's lifespan starts the engine, and closes it at the end if it was not
        started before. An application in another one gets no lifespan: start the engine yourself.

        Args:
            tokens: As in `HttpServer`. Defaults to `None`: no token is needed.
            max_body_bytes: As in `HttpServer`. Defaults to 64 MiB (`67108864`).
            access_log: As in `HttpServer`. Defaults to `False`.
            traces: As in `HttpServer`. Defaults to `False`.
            model_control: As in `HttpServer`. Defaults to `"none"`.
            management_tokens: As in `HttpServer`. Defaults to `None`.

        Returns:
            An ASGI 3 application.

        Example:

        >>> import asyncio
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> engine = ServingEngine(model, max_batch_size=1)
        >>> app = engine.asgi_app()  # app.mount("/models", engine.asgi_app()) in FastAPI
        >>> async def send(message):
        ...     print(message.get("status", message.get("body")))
        >>> live = {"type": "http", "method": "GET", "path": "/v2/health/live", "headers": []}
        >>> asyncio.run(app({**live, "http_version": "1.1"}, None, send))
        200
        b'{"live":true}'
        """
        server = HttpServer(
            self,
            max_body_bytes=max_body_bytes,
            tokens=tokens,
            access_log=access_log,
            traces=traces,
            model_control=model_control,
            management_tokens=management_tokens,
        )
        return server.application

    def __enter__(self) -> "ServingEngine":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start_servers(self, servers: Sequence[Server]) -> None:
        """Starts the servers, then the engine. If one fails, all of these servers are stopped."""
        try:
            for server in servers:
                server.start()
            self._servers = [*self._servers, *servers]
            self.start()
        except BaseException:
            stop_servers(servers)
            for admin in self._admin_servers:
                admin.stop()
            self._servers = [server for server in self._servers if server not in servers]
            raise
