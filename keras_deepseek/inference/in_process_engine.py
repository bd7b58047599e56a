"""An engine without servers: models, and the calls that this process makes of them.

`models` holds them, `batching` groups what is asked; `engine` puts servers in front of it.
"""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.arguments import check_option_names
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.future_delivery import Answer, open_future
from keras_deepseek.inference.batching.loop_delivery import Settle, Waiter, open_waiter
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.models.model_host import ModelHost
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.monitoring.request_log import RequestLog
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.request_options import RequestOptions


class InProcessEngine(ModelHost):
    """Sends requests to models: the part of a `ServingEngine` that all of them go through.

    Args:
        model: As `ServingEngine` takes it.
        name: string. The name of this model.
        version: integer. Its version.
        options: `ModelOptions` of this model, and of others that come without.
        max_concurrent_batches: integer or `None`. Batches that run at the same time.
        log_requests: The path that `RequestLog` writes to, or `None`.
        sample: float. The part of the requests that is written there.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        version: int,
        options: ModelOptions,
        max_concurrent_batches: int | None,
        log_requests: str | os.PathLike[str] | None,
        sample: float,
    ) -> None:
        # Before the model: what is wrong with it is said before anything is loaded.
        self._request_log = None if log_requests is None else RequestLog(log_requests, sample)
        try:
            super().__init__(model, name, version, options, max_concurrent_batches)
        except BaseException:
            self._close_request_log()
            raise

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
