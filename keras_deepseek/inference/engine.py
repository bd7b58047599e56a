"""The engine: a model, its batcher, and the servers in front of it.

`executors` computes, `batcher` groups, `http` listens; this file joins them and holds their life.
"""

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Literal

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.arguments import (
    check_batch_axis,
    check_batch_size,
    check_count,
    check_name,
    check_request_options,
    check_seconds,
)
from keras_deepseek.inference.batch import Request
from keras_deepseek.inference.batcher import Batcher, BatchStatistics
from keras_deepseek.inference.client_order import ClientOrder
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.executors.open_executor import open_executor
from keras_deepseek.inference.http import HttpServer
from keras_deepseek.inference.loop_delivery import LoopDelivery, Waiter


class ServingEngine:
    """Serves a model: single requests in, batches through the model, answers out.

    With `batch_size="dynamic"` whatever waits is taken whenever the model is free: batches grow
    with the load. Where a short wait has turned out to fill batches and to make answers come
    sooner, rows are waited for, and no longer than that. With a number, a batch waits up to 5 ms
    for that many rows. Batches are padded to powers of two (or to the fixed size) by repeating
    their last row.

    The engine starts at its first use, or by `start` or `with`. Starting runs the model once for
    every batch size that it will see, so that no request pays for compilation; that needs inputs
    whose axes are all fixed but the first. Models with a free axis compile when its lengths are
    first met.

    Args:
        model: A built `keras.Model`, the path of a bundle or of a `.keras` file, or an `Executor`.
        name: string. The name in URLs. Defaults to `"model"`.
        batch_size: `"dynamic"`, or an integer up to `max_batch_size`. Defaults to `"dynamic"`.
        max_batch_size: integer. Rows of the largest batch; requests with more are run in parts.
            Defaults to `32`.
        max_queue_rows: integer. Rows that may wait before requests are refused. Defaults to `1024`.
        target_latency: float. Seconds within which requests are to be answered: batches are kept as
            small as that needs, and requests that would take longer are refused. Defaults to
            `None`: there is no such limit.
        replicas: integer. Threads that run the model, each with a batch of its own. What comes from
            a path is loaded as often; a live model or an `Executor` is called from all of them.
            Defaults to `1`.
        warm_up: boolean. Whether starting runs the model for every batch size. Defaults to `True`.
        custom_objects_from: sequence of module names or `.py` files that define the custom classes
            of a `.keras` file. Defaults to `()`.

    Raises:
        InvalidInputError: An argument is not one of these.
        NotSupportedError: The model takes one batch size alone, or no executor runs its format.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=2) as engine:
    ...     engine.predict(np.zeros((1, 4), "float32"))
    array([[0., 0.]], dtype=float32)
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str = "model",
        batch_size: int | Literal["dynamic"] = "dynamic",
        max_batch_size: int = 32,
        max_queue_rows: int = 1024,
        target_latency: float | None = None,
        replicas: int = 1,
        warm_up: bool = True,
        custom_objects_from: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        check_name(name)
        check_count("max_batch_size", max_batch_size)
        check_count("max_queue_rows", max_queue_rows)
        check_batch_size(batch_size, max_batch_size)
        check_count("replicas", replicas)
        check_seconds("target_latency", target_latency)
        self.name = name
        self._executors = [open_executor(model, custom_objects_from) for _ in range(replicas)]
        check_batch_axis(self.signature)
        self._warm_up = warm_up
        self._delivery = LoopDelivery()
        self._order = ClientOrder()
        self._batcher = Batcher(
            [executor.run for executor in self._executors],
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            max_queue_rows=max_queue_rows,
            target_latency=target_latency,
            after_batch=self._delivery.flush,
        )
        self._lock = threading.Lock()
        self._state: Literal["new", "ready", "closed"] = "new"
        self._servers: list[HttpServer] = []

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the model's inputs and outputs."""
        return self._executors[0].signature

    @property
    def ready(self) -> bool:
        """Whether requests are answered: the engine is started and not closing."""
        return self._state == "ready"

    def start(self) -> None:
        """Warms the model up and starts the thread that runs it. Nothing is done the second time.

        Raises:
            ClosedError: The engine was closed.
        """
        with self._lock:
            if self._state == "ready":
                return
            self._check_open()
            if self._warm_up:
                self._run_every_bucket()
            self._batcher.start()
            self._state = "ready"

    def close(self) -> None:
        """Becomes unready, answers what was accepted, and stops the servers. It can't be undone."""
        with self._lock:
            if self._state == "closed":
                return
            self._state = "closed"
        for server in self._servers:
            server.stop()
        self._batcher.close(drain=True)

    def predict(
        self,
        x: Any,
        *,
        timeout: float | None = None,
        priority: int = 0,
        client: Hashable = None,
    ) -> Any:
        """Returns the model's outputs for `x`; blocks until they are there.

        Args:
            x: An array, or nested lists, where the model has one input; else a mapping by input
                name, or a sequence in the order of the inputs. Rows first: any number of them.
            timeout: float. As in `submit`. Defaults to `None`.
            priority: integer. As in `submit`. Defaults to `0`.
            client: A hashable value. As in `submit`. Defaults to `None`.

        Returns:
            A NumPy array where the model has one output, else a dict of arrays by output name.

        Raises:
            InvalidInputError: `x` does not fit the model's inputs.
            OverloadedError: Too many rows are waiting, or it could not be answered in time.
            DeadlineExceededError: The answer was not there within `timeout`.
            ClosedError: The engine was closed.
        """
        self.start()
        return self._unwrap(
            self.submit(x, timeout=timeout, priority=priority, client=client).result()
        )

    async def predict_async(
        self,
        x: Any,
        *,
        timeout: float | None = None,
        priority: int = 0,
        client: Hashable = None,
    ) -> Any:
        """Returns what `predict` returns, without blocking the event loop.

        Cancelling the call takes the request out of the queue.

        Args:
            x: As in `predict`.
            timeout: float. As in `submit`. Defaults to `None`.
            priority: integer. As in `submit`. Defaults to `0`.
            client: A hashable value. As in `submit`. Defaults to `None`.
        """
        if not self.ready:
            await asyncio.to_thread(self.start)
        return self._unwrap(
            await self.submit_async(x, timeout=timeout, priority=priority, client=client)
        )

    def submit(
        self,
        x: Any,
        *,
        timeout: float | None = None,
        priority: int = 0,
        client: Hashable = None,
    ) -> Future[dict[str, Array]]:
        """Puts `x` in the queue of a started engine.

        Args:
            x: As in `predict`.
            timeout: float. Seconds after which nobody wants the answer: a request that is late is
                not run, and one that would be late is refused. Defaults to `None`: it never is.
            priority: integer. Of those that wait, higher ones are run first. Defaults to `0`.
            client: A hashable value: requests that have it are answered in their order. Defaults
                to `None`: each is answered when it is done.

        Returns:
            A `concurrent.futures.Future` of a dict of arrays by output name. Cancelling it takes
            the request out of the queue.
        """
        answer: Future[dict[str, Array]] = Future()
        request = self._submit(x, partial(_complete, answer), timeout, priority, client)

        def cancel(answer: Future[dict[str, Array]]) -> None:
            if answer.cancelled():
                self._cancel(request, client)

        answer.add_done_callback(cancel)
        return answer

    def submit_async(
        self,
        x: Any,
        *,
        timeout: float | None = None,
        priority: int = 0,
        client: Hashable = None,
    ) -> Waiter:
        """Puts `x` in the queue of a started engine, for the running event loop to await.

        Args:
            x: As in `predict`.
            timeout: float. As in `submit`. Defaults to `None`.
            priority: integer. As in `submit`. Defaults to `0`.
            client: A hashable value. As in `submit`. Defaults to `None`.

        Returns:
            An `asyncio.Future` of a dict of arrays by output name.
        """
        waiter, deliver = self._delivery.open()
        request = self._submit(x, deliver, timeout, priority, client)

        def cancel(waiter: Waiter) -> None:
            if waiter.cancelled():
                self._cancel(request, client)

        waiter.add_done_callback(cancel)
        return waiter

    def statistics(self) -> BatchStatistics:
        """Returns how many batches and rows were run, and why the last batches left."""
        return self._batcher.statistics()

    def serve(
        self, http_port: int = 8501, *, host: str = "127.0.0.1", block: bool = False
    ) -> HttpServer:
        """Answers TF Serving's REST calls, under `/v1/models/NAME`.

        The port is taken first, then the engine starts; meanwhile clients are told that it is not
        ready.

        Args:
            http_port: integer. `0` takes a free one. Defaults to `8501`.
            host: string. The address to listen at. Defaults to `"127.0.0.1"`: this machine alone.
            block: boolean. Whether to return only when the server was stopped, by `close` or by
                Ctrl-C. Defaults to `False`.

        Returns:
            The `HttpServer`, with its `url`. `close` stops it.

        Raises:
            InvalidInputError: The port is taken, or the address is none of this machine's.
            MissingExtraError: The packages of the extra `serving` are not installed.
        """
        self._check_open()
        server = HttpServer(self, host, http_port)
        server.start()
        self._servers.append(server)
        try:
            self.start()
        except BaseException:
            server.stop()
            raise
        if block:
            try:
                server.wait()
            except KeyboardInterrupt:
                server.stop()
        return server

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

    def _check_open(self) -> None:
        if self._state == "closed":
            raise ClosedError(f"The engine of the model {self.name!r} is closed: make a new one.")

    def _submit(
        self,
        x: Any,
        deliver: Callable[[Request], None],
        timeout: float | None,
        priority: int,
        client: Hashable,
    ) -> Request:
        if not self.ready:
            self._check_open()
            raise ClosedError(f"The model {self.name!r} is not ready: call `start` first.")
        check_request_options(timeout, priority)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        inputs = self.signature.bind(x)
        if client is None:
            request = Request(inputs, deliver, deadline=deadline, priority=priority)
            self._batcher.submit(request)
            return request
        request = Request(
            inputs, lambda _: self._order.settle(client), deadline=deadline, priority=priority
        )
        self._order.add(client, request, deliver)
        try:
            self._batcher.submit(request)
        except BaseException:
            self._cancel(request, client)
            raise
        return request

    def _cancel(self, request: Request, client: Hashable) -> None:
        if self._batcher.cancel(request) and client is not None:
            self._order.settle(client)
            self._delivery.flush()

    def _run_every_bucket(self) -> None:
        specs = self.signature.inputs
        sizes = {spec.name: [size for size in spec.shape[1:] if size is not None] for spec in specs}
        if any(len(sizes[spec.name]) < len(spec.shape) - 1 for spec in specs):
            return
        for bucket in self._batcher.buckets:
            inputs = {
                spec.name: np.zeros((bucket, *sizes[spec.name]), spec.dtype) for spec in specs
            }
            for executor in self._executors:
                executor.run(inputs)
            start = time.monotonic()
            self._executors[0].run(inputs)  # The first call may have compiled: it tells nothing.
            self._batcher.batch_time.add(bucket, time.monotonic() - start)

    def _unwrap(self, outputs: dict[str, Array]) -> Any:
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def _complete(answer: Future[dict[str, Array]], request: Request) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    if request.error is not None:
        answer.set_exception(request.error)
    else:
        answer.set_result(request.outputs or {})
