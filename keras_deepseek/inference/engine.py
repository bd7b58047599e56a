"""The engine that users make: a dispatcher of requests to its models, with servers."""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.checks import check_boolean
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.batch_totals import BatchStatistics
from keras_deepseek.inference.dispatcher import Dispatcher
from keras_deepseek.inference.grpc.grpc_server import GrpcServer
from keras_deepseek.inference.http.http_application import HttpApplication
from keras_deepseek.inference.http.http_server import HttpServer
from keras_deepseek.inference.model_download import fetch_model, is_uri
from keras_deepseek.inference.models.model_folder import ModelFolder, Policy
from keras_deepseek.inference.models.model_options import ModelKeywords, ModelOptions
from keras_deepseek.inference.models.model_repository import ModelRepository
from keras_deepseek.inference.models.open_version import as_tensor_version
from keras_deepseek.inference.models.version import Version
from keras_deepseek.inference.monitoring.request_log import DEFAULT_SAMPLE, RequestLog
from keras_deepseek.inference.options import show_options
from keras_deepseek.inference.process_limits import most_connections
from keras_deepseek.inference.server.admin_server import AdminServer
from keras_deepseek.inference.server.http_limits import HttpLimits
from keras_deepseek.inference.server.server import (
    Server,
    describe_servers,
    stop_servers,
    wait_until_stopped,
)
from keras_deepseek.inference.server.server_options import (
    ApplicationKeywords,
    ServerKeywords,
    ServerOptions,
)
from keras_deepseek.inference.server.service import Service
from keras_deepseek.inference.server.termination import Interruption
from keras_deepseek.stderr_log import log_warnings_to_stderr


class ServingEngine(Dispatcher):
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
            folder, of an `.onnx` file or a folder with `model.onnx`, or of a `.keras` file. Or a
            language model, which `text` asks: the path of a preset, a folder with a `config.json`
            and a tokenizer, or a live `CausalLM` with a tokenizer, ours or KerasHub's. Or the path
            of a folder of versions, as `"models/digits"` with the bundle or SavedModel
            `"models/digits/1"`: its newest version is served, also if it is added later. Or the
            result of `read_model_config`: several models, each with a folder of versions. Or the
            URI of a model, which is downloaded (`fetch_model`).
        name: string. The name in URLs. The models of a model config have their own names, and the
            first is the engine's own model. Defaults to `"model"`.
        version: integer. The number of this version. Defaults to `1`.
        max_concurrent_batches: integer. The number of batches that run at the same time, for all
            models together. If several models wait, the one that has used least time is next. A
            batch that hangs keeps its place: for `batch_timeout` if it is isolated, else for ever.
            Defaults to `None`: each replica runs whenever it can.
        log_requests: The path of a file for a sample of the requests and their answers
            (`RequestLog`). Defaults to `None`: nothing is written.
        sample: float above 0, up to 1. The fraction of the requests that is written. Defaults to
            `0.01`.
        **options: `ModelOptions`, which documents them: `batch_size`, `max_batch_size`, `replicas`,
            `padding` and others.

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

    @show_options(ModelOptions, ModelKeywords)
    def __init__(
        self,
        model: Any,
        *,
        name: str = "model",
        version: int = 1,
        max_concurrent_batches: int | None = None,
        log_requests: str | os.PathLike[str] | None = None,
        sample: float = DEFAULT_SAMPLE,
        **options: Unpack[ModelKeywords],
    ) -> None:
        self.options = ModelOptions(**options)
        if log_requests is None and sample != DEFAULT_SAMPLE:
            raise InvalidInputError(
                f"Received sample={sample!r} without `log_requests`. Add the path of the file to "
                "write the sample to, as in log_requests='requests.jsonl'."
            )
        model = fetch_model(model) if is_uri(model) else model
        # The log first: a wrong path is reported before a model is loaded.
        log = None if log_requests is None else RequestLog(log_requests, sample)
        try:
            repository = ModelRepository(model, name, version, self.options, max_concurrent_batches)
        except BaseException:
            if log is not None:
                log.close()
            raise
        super().__init__(repository, log)
        self._servers: Sequence[Server] = ()
        self._admin_servers: list[AdminServer] = []
        self._grace_seconds: float | None = None

    @property
    def folders(self) -> Sequence[ModelFolder]:
        """The followed folders."""
        return self.repository.folders

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and outputs of the engine's own model."""
        return self.find().signature

    @property
    def servers(self) -> Sequence[Server]:
        """The servers that `serve` has started."""
        return self._servers

    def load(
        self,
        model: Any,
        *,
        name: str | None = None,
        version: int | None = None,
        share: float | None = None,
        keep: int | None = 1,
        options: ModelOptions | None = None,
    ) -> Version:
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
            The `Version`.

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
        changes. A version that is served already, from the same folder, is not loaded again.

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

    def statistics(self, model: str | None = None, version: int | None = None) -> BatchStatistics:
        """Returns the numbers of batches and rows, and why the last batches left the queue.

        Args:
            model: string. The model's name. Defaults to `None`: the engine's own.
            version: integer. Defaults to `None`: the newest that is not on trial.

        Raises:
            ModelNotFoundError: There is no such model or version.
            InvalidInputError: It is a language model.
        """
        return as_tensor_version(self.find(model, version)).statistics()

    def close(self) -> None:
        """Stops the servers, refuses new requests, and answers the accepted ones, for good.

        If there are servers, requests that are not answered within their `grace_seconds` get a
        `ClosedError`, and a model that hangs is abandoned. Without servers, `close` waits for it.
        """
        start = time.monotonic()
        stop_servers(self._servers)  # They answer what comes on open connections meanwhile.
        self._close(None if self._grace_seconds is None else start + self._grace_seconds)
        for admin in self._admin_servers:
            admin.stop()

    @show_options(ServerOptions, ServerKeywords)
    def serve(
        self,
        http_port: int = 8501,
        grpc_port: int | None = None,
        *,
        block: bool = False,
        **options: Unpack[ServerKeywords],
    ) -> HttpServer:
        """Starts servers for the calls of TF Serving and of Open Inference.

        The ports are opened first, then the engine starts. Until then clients are told that it is
        not ready.

        Args:
            http_port: integer. `0` takes a free one. Defaults to `8501`.
            grpc_port: integer. TF Serving's is 8500. Defaults to `None`: no gRPC.
            block: boolean. If `True`, `serve` prints the URLs, and returns when the servers were
                stopped: by `close`, or by Ctrl-C, SIGTERM or SIGHUP, after `unready_seconds` and
                when the accepted requests are answered. The log's warnings go to the standard
                error, if no handler takes them. Defaults to `False`.
            **options: `ServerOptions`, which documents them: `host`, `tokens`, `ssl_context`,
                `limits`, `access_log`, `traces`, `model_control`, `admin_port` and others.

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
        checked = ServerOptions(http_port, grpc_port, **options)
        checked.check_ports()
        servers = self._make_servers(checked)
        seconds = servers[0].service.limits.grace_seconds
        self._grace_seconds = max(seconds, self._grace_seconds or 0.0)
        if checked.admin_port is not None:
            admin = AdminServer(checked.host, checked.admin_port, self)
            admin.start()
            self._admin_servers.append(admin)
        with log_warnings_to_stderr() if block else contextlib.nullcontext():
            self._start_servers(servers)
            if block:
                with Interruption() as interruption:
                    wait_until_stopped(servers, describe_servers(self, servers), interruption)
                if interruption.has_come:
                    stop_servers(servers)
        return servers[0]

    @show_options(ServerOptions, ApplicationKeywords)
    def asgi_app(self, **options: Unpack[ApplicationKeywords]) -> HttpApplication:
        """Returns the HTTP server's application, for any server of ASGI 3.

        Choose it to mount the models in an application of FastAPI or Starlette, to put another
        server before them, or to test a client without a port. `serve` has more to offer an open
        port: it limits the times and the number of connections, stops without losing requests, and
        notices at less cost that a client has hung up.

        A server with ASGI's lifespan starts the engine, and closes it at the end if it was not
        started before. An application in another one gets no lifespan: start the engine yourself.

        Args:
            **options: `ServerOptions`, which documents them: `tokens`, `max_body_bytes`,
                `access_log`, `traces`, `model_control` and `management_tokens`.

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
        return HttpApplication(Service(self, ServerOptions(**options)))

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

    def _make_servers(self, options: ServerOptions) -> tuple[HttpServer, *tuple[Server, ...]]:
        ports = 1 if options.grpc_port is None else 2
        limits = options.limits or HttpLimits()
        limits = replace(limits, max_connections=most_connections(limits.max_connections, ports))
        options = replace(options, limits=limits)
        http = HttpServer(Service(self, options))
        return (http,) if ports == 1 else (http, GrpcServer(Service(self, options)))
