"""Sends requests to the models of a repository, for calls of this process and for the servers."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.arguments import check_option_names
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
from keras_deepseek.inference.monitoring.request_log import RequestLog
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.request_options import RequestOptions


class Dispatcher:
    """Puts requests in the queues of model versions, and hands back their outputs."""

    def __init__(self, repository: ModelRepository, request_log: RequestLog | None) -> None:
        self._repository = repository
        self._request_log = request_log

    def predict(self, x: Any, **options: Unpack[RequestOptions]) -> Any:
        """Starts the engine, and returns the outputs for `x` when they are computed."""
        self._repository.start()
        return _unwrap(self.submit(x, **options).result())

    async def predict_async(self, x: Any, **options: Unpack[RequestOptions]) -> Any:
        """Does the same as `predict` without blocking the event loop."""
        if self._repository.state != "ready":
            await asyncio.to_thread(self._repository.start)
        return _unwrap(await self.submit_async(x, **options))

    def submit(self, x: Any, **options: Unpack[RequestOptions]) -> Answer:
        """Queues a request. Returns a `concurrent.futures.Future` of its outputs by name."""
        check_option_names(options)
        answer, deliver = open_future()
        cancel, _ = self._submit(lambda signature: signature.bind(x), deliver, options)
        answer.add_done_callback(lambda answer: cancel() if answer.cancelled() else None)
        return answer

    def submit_async(self, x: Any, **options: Unpack[RequestOptions]) -> Waiter:
        """Queues a request. Returns an `asyncio.Future` of its outputs by name."""
        check_option_names(options)
        return self.dispatch_async(lambda signature: signature.bind(x), **options)[0]

    def dispatch_async(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        trace: RequestTrace | None = None,
        **options: Unpack[RequestOptions],
    ) -> tuple[Waiter, ModelVersion]:
        """Queues a request as `dispatch` does. Returns its future, and the version."""
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
        """Queues a request whose inputs `bind` reads by the signature of the version.

        Returns a function that takes the request out of the queue, and the version.
        """
        return self._submit(bind, self._repository.delivery.to_loop(settle), options, trace)

    def close(self) -> None:
        """Writes the rest of the request log."""
        if self._request_log is not None:
            self._request_log.close()

    def _submit(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        deliver: Callable[[Request], None],
        options: RequestOptions,
        trace: RequestTrace | None = None,
    ) -> tuple[Callable[[], None], ModelVersion]:
        repository = self._repository
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
                request = version.submit(
                    inputs,
                    deliver
                    if self._request_log is None
                    else self._request_log.watch(version.name, version.number, inputs, deliver),
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
