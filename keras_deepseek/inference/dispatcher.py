"""The dispatcher of requests to the models of a repository, for this process and for servers."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, Unpack

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.arguments import RequestOptions, check_option_names
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.delivery import (
    Answer,
    Settle,
    Waiter,
    open_future,
    open_waiter,
)
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.models.model_repository import ModelRepository
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.served_model import ServedModel
from keras_deepseek.inference.monitoring.request_log import RequestLog
from keras_deepseek.inference.monitoring.request_trace import RequestTrace


class ReadyCheck(Protocol):
    """The part of a server that its engine uses."""

    @property
    def ready(self) -> bool:
        """True if health checks may answer that the server is ready."""


class Dispatcher:
    """A model repository with the calls that put requests in the queues of its models.

    The handlers of HTTP and gRPC use it. Its subclass `ServingEngine` adds the servers.
    """

    def __init__(self, repository: ModelRepository, request_log: RequestLog | None) -> None:
        self.repository = repository
        self.name = repository.name
        self.monitor = repository.monitor
        self._request_log = request_log

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The served models by name. An unknown name raises a `ModelNotFoundError`."""
        return self.repository.models

    @property
    def ready(self) -> bool:
        """True if requests are answered: the engine is started and not closing."""
        return self.repository.state == "ready"

    @property
    def servers(self) -> Sequence[ReadyCheck]:
        """The servers that `ServingEngine.serve` has started; none in this base class."""
        return ()

    def start(self) -> None:
        """Warms the models up and starts the threads that run them. A second call does nothing.

        Raises:
            ClosedError: The engine was closed.
        """
        self.repository.start()

    def close(self) -> None:
        """Refuses new requests, and answers the accepted ones, for good."""
        self._close(None)

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
        self.repository.start()
        return _unwrap(self.submit(x, **options).result())

    async def predict_async(self, x: Any, **options: Unpack[RequestOptions]) -> Any:
        """Returns the same as `predict`, without blocking the event loop.

        Cancelling the call removes the request from the queue.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.
        """
        if not self.ready:
            await asyncio.to_thread(self.repository.start)
        return _unwrap(await self.submit_async(x, **options))

    def submit(self, x: Any, **options: Unpack[RequestOptions]) -> Answer:
        """Queues a request of a started engine.

        Args:
            x: As in `predict`.
            **options: `RequestOptions`.

        Returns:
            A `concurrent.futures.Future` of a dict of arrays by output name. Cancelling it removes
            the request from the queue.
        """
        check_option_names(options)
        answer, deliver = open_future()
        cancel, _ = self._submit(lambda signature: signature.bind(x), deliver, options)
        answer.add_done_callback(lambda answer: cancel() if answer.cancelled() else None)
        return answer

    def submit_async(self, x: Any, **options: Unpack[RequestOptions]) -> Waiter:
        """Queues a request of a started engine, for the running event loop to await.

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
        """Queues a request whose inputs are read with the signature of the version that answers it.

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
        return self._submit(bind, self.repository.delivery.to_loop(settle), options, trace)

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

    def _close(self, end: float | None) -> None:
        """Closes the models by the time `end` of the monotonic clock; `None` waits for all."""
        if self.repository.begin_to_close():
            self.repository.close_models(None if end is None else end - time.monotonic())
            if self._request_log is not None:
                self._request_log.close()

    def _submit(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        deliver: Callable[[Request], None],
        options: RequestOptions,
        trace: RequestTrace | None = None,
    ) -> tuple[Callable[[], None], ModelVersion]:
        """Queues a request. Returns a function that cancels it, and the version that answers."""
        repository = self.repository
        if repository.state != "ready":
            repository.check_open()
            raise ClosedError(f"The model {repository.name!r} is not ready: call `start` first.")
        name, number = options.get("model"), options.get("version")
        label, client = options.get("label", ""), options.get("client")
        while True:
            served = repository.find_model(name)
            version = served.find(number, label)
            if trace is not None:
                trace.model, trace.version = version.name, str(version.number)
                repository.monitor.arrive(trace)
            try:
                if options.get("timeout") is None:
                    version.check_room()  # Reading a large body only to refuse it takes long.
                inputs = bind(version.signature)
                deliver_and_log = deliver
                if self._request_log is not None:
                    deliver_and_log = self._request_log.watch(
                        version.name, version.number, inputs, deliver
                    )
                request = version.submit(
                    inputs,
                    deliver_and_log,
                    timeout=options.get("timeout"),
                    priority=options.get("priority", 0),
                    client=client,
                    # Cached answers would keep most requests from a version on trial.
                    use_cache=number is not None or label != "" or not served.on_trial,
                    connection=None if trace is None else trace.connection,
                )
            except ClosedError:
                # The version was closed after it was found: another may have replaced it.
                if repository.find(name, number, label) is version:
                    raise
            else:
                if trace is not None:
                    trace.request = request
                return partial(version.cancel, request, client), version


def _unwrap(outputs: dict[str, Array]) -> Any:
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs
