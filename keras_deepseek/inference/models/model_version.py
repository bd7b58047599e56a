"""One version of a model that takes tensors: its executors, its batcher and its cache.

`served_model` holds the versions of a model. `dispatcher` sends requests to them.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from keras_deepseek.artifacts.signature import Array, Signature, find_dtype
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_batch_axis, check_request_options
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.batch_totals import BatchStatistics
from keras_deepseek.inference.batching.batcher import Batcher
from keras_deepseek.inference.batching.delivery import ClientOrder, Deliver
from keras_deepseek.inference.batching.fair_scheduler import FairScheduler
from keras_deepseek.inference.batching.padding import Padder
from keras_deepseek.inference.executors.executor import Executor, check_outputs
from keras_deepseek.inference.executors.isolated_model import IsolatedModel
from keras_deepseek.inference.executors.open_executor import open_executor
from keras_deepseek.inference.models.model_options import MAX_ROWS, ModelOptions, check_kind
from keras_deepseek.inference.models.response_cache import ResponseCache
from keras_deepseek.inference.models.signature_change import rename_like
from keras_deepseek.inference.models.version import Version
from keras_deepseek.inference.models.warm_up import (
    check_padding,
    find_row_dependence,
    run_every_size,
)

_logger = logging.getLogger(__name__)

Bind = Callable[[Signature], dict[str, Array]]
"""Reads the inputs of a request for a signature."""

_MAX_NAMES = 32
"""The most replaced versions whose names are accepted: the last ones."""

_LENGTH = 16
"""The length of free axes in the check for row dependence, if `padding` gives none."""


class ModelVersion(Version):
    """A version of a model that takes tensors.

    `after_batch` is called after each batch, and when a request was answered without one. Before a
    batch runs, `scheduler` must give the model its turn; with `None` the model waits for no other.
    """

    def __init__(
        self,
        name: str,
        number: int,
        model: Any,
        options: ModelOptions,
        after_batch: Callable[[], None],
        scheduler: FairScheduler | None = None,
    ) -> None:
        super().__init__(name, number, options)
        check_kind(options, "tensors", name)
        self._after_batch = after_batch
        # An object of the user may be in use elsewhere: it is never closed.
        self._owns_executors = isinstance(model, str | os.PathLike)
        self._executors: list[Executor] = []
        try:
            for _ in range(options.replicas):
                self._executors.append(_open(model, options))
            signature = self._executors[0].signature
            check_batch_axis(signature)
            padding = options.padding
            self._padder = None if padding is None else Padder(padding, signature)
        except BaseException:
            self._release()
            raise
        self.cache = ResponseCache(options.cache_entries) if options.cache_entries else None
        self._order = ClientOrder()
        self._renamed: dict[str, Signature] = {}
        """The signature with the names of each replaced version, by the name of its input."""
        self._batcher = Batcher(
            [partial(_run, executor) for executor in self._executors],
            batch_size=options.batch_size,
            max_batch_size=options.max_batch_size or MAX_ROWS,
            max_wait=options.max_wait,
            max_queue_rows=options.max_queue_rows,
            row_bytes=_row_bytes(self._executors[0].signature),
            target_latency=options.target_latency,
            take_turn=None if scheduler is None else partial(scheduler.take, name),
            after_batch=after_batch,
        )

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and outputs, as clients see them."""
        return self._executors[0].signature if self._padder is None else self._padder.signature

    @property
    def max_rows(self) -> int:
        """The most rows of one request."""
        return self._batcher.most_rows

    def accept_names_of(self, version: Version) -> None:
        """Accepts requests by the name of a single input that a replaced version had, too.

        Their answers have that version's names of outputs.
        """
        if not isinstance(version, ModelVersion):
            return
        signature = self.signature
        renamed = [rename_like(signature, old) for old in (version.signature, *version.renamed)]
        by_name = {item.inputs[0].name: item for item in renamed if item is not None}
        self._renamed = dict(list(by_name.items())[:_MAX_NAMES])

    @property
    def renamed(self) -> Sequence[Signature]:
        """The signature under the names of replaced versions."""
        return list(self._renamed.values())

    def bind(self, bind: Bind) -> dict[str, Array]:
        """Returns the inputs that `bind` reads for the signature, or under the names of another."""
        try:
            return bind(self.signature)
        except InvalidInputError:
            for name, signature in self._renamed.items():
                with contextlib.suppress(InvalidInputError):
                    inputs = bind(signature)
                    # The next request is likely to have the same name.
                    self._renamed = {name: signature, **self._renamed}
                    return inputs
            raise

    def submit(
        self,
        inputs: dict[str, Array],
        deliver: Deliver,
        *,
        timeout: float | None = None,
        priority: int = 0,
        client: Hashable = None,
        use_cache: bool = False,
        connection: int | None = None,
    ) -> Request:
        """Queues a request, or answers it from the cache.

        After `timeout` seconds the answer is useless. Requests of the same `client` are answered in
        order: the cache is not used for them, since its answer could overtake an earlier one.
        `connection` is the descriptor of the client's socket. Raises `ClosedError` unless the
        version is started, and `OverloadedError` if the request can't be answered in time.
        """
        check_request_options(timeout, priority)
        self.check_available()
        inputs, deliver = self._rename(inputs, deliver)
        # Arrays without elements can claim any number of rows. Check before arrays are made.
        self._batcher.check_size(max(array.shape[0] for array in inputs.values()))
        if use_cache and self.cache is not None and client is None:
            key = self.cache.key(inputs)
            outputs = self.cache.get(key)
            if outputs is not None:
                return self._answer_at_once(inputs, outputs, deliver)
            deliver = _deliver_and_cache(self.cache, key, deliver)
        if self._padder is not None:
            inputs, deliver = self._pad(self._padder, inputs, deliver)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        # With a client, `_order` calls `deliver` when all earlier requests are answered.
        on_answer = deliver if client is None else lambda _: self._order.settle(client)
        request = Request(
            inputs, on_answer, deadline=deadline, priority=priority, connection=connection
        )
        if client is not None:
            self._order.add(client, request, deliver)
        try:
            self._batcher.submit(request)
        except BaseException:
            self.cancel(request, client)
            raise
        return request

    def check_room(self, rows: int = 1) -> None:
        """Raises `OverloadedError` if a request need not be read, since it would be refused.

        `rows` includes the rows of other requests that are being read.
        """
        if self.cache is None:  # With a cache, any request may be answered.
            self._batcher.check_room(rows)

    def cancel(self, request: Request, client: Hashable) -> None:
        """Removes a request from the queue. If it is running, its answer is dropped."""
        if self._batcher.cancel(request) and client is not None:
            self._order.settle(client)
            self._after_batch()

    def _begin(self) -> None:
        self._batcher.start()

    def _end(self, seconds: float | None) -> bool:
        for executor in self._executors:
            executor.prepare_to_close()
        return self._batcher.close(seconds)

    def _release(self, *, is_idle: bool = True) -> None:
        if not self._owns_executors:
            return
        for executor in self._executors:
            # A batch that runs in this process would fail under a closed executor.
            if is_idle or executor.is_isolated:
                executor.close()

    def statistics(self) -> BatchStatistics:
        """Returns the totals of batches and rows, and why the last batches left the queue."""
        return self._batcher.statistics()

    def _answer_at_once(
        self, inputs: dict[str, Array], outputs: dict[str, Array], deliver: Deliver
    ) -> Request:
        request = Request(inputs, deliver)
        request.is_cached = True
        request.answer(0, outputs, request.rows)
        self._after_batch()
        return request

    def _warm_up(self) -> None:
        padding, buckets = self._options.padding, self._batcher.buckets
        lengths = () if padding is None else padding.lengths
        _logger.info("Warms up the model %r: batches of %s rows.", self.name, list(buckets))
        if self._padder is not None:
            check_padding(self._executors[0], self._padder, lengths, buckets[0])
        run_every_size(self._executors, buckets, lengths, self._batcher.batch_time)
        self._warn_of_row_dependence(lengths)

    def _warn_of_row_dependence(self, lengths: Sequence[int]) -> None:
        executor = self._executors[0]
        sizes = [size for spec in executor.signature.inputs for size in spec.shape[1:]]
        is_free = None in sizes and not lengths
        if is_free and executor.is_isolated:
            return  # A length that the model does not take might end its process.
        # A guessed length may be one that the model does not take.
        with contextlib.suppress(*((Exception,) if is_free else ())):
            length = lengths[0] if lengths else _LENGTH
            if dependence := find_row_dependence(executor, self._batcher.buckets, length):
                _logger.warning(
                    "Answers of model %r depend on which requests share a batch: %s. It mixes the "
                    "rows of a batch, for example by a product or a mean over the first axis. "
                    "Change the model, or serve one row at a time, with max_batch_size=1.",
                    *(self.name, dependence),
                )

    def _rename(
        self, inputs: dict[str, Array], deliver: Deliver
    ) -> tuple[dict[str, Array], Deliver]:
        """Returns inputs under the model's names, and a `deliver` that gives outputs the old ones.

        `inputs` may have the names of a version that this one has replaced.
        """
        name = next(iter(inputs))
        signature = self._renamed.get(name)
        if signature is None:
            return inputs, deliver
        names = [spec.name for spec in self.signature.outputs]
        old_names = [spec.name for spec in signature.outputs]

        def rename(request: Request) -> None:
            outputs = request.outputs
            if outputs is not None:
                request.outputs = {
                    old_name: outputs[name] for name, old_name in zip(names, old_names, strict=True)
                }
            deliver(request)

        return {self.signature.inputs[0].name: inputs[name]}, rename

    @staticmethod
    def _pad(
        padder: Padder, inputs: dict[str, Array], deliver: Deliver
    ) -> tuple[dict[str, Array], Deliver]:
        def cut(request: Request) -> None:
            if request.outputs is not None:
                request.outputs = padder.cut(request.outputs, inputs)
            deliver(request)

        return padder.fill(inputs), cut


def _deliver_and_cache(cache: ResponseCache, key: bytes, deliver: Deliver) -> Deliver:
    def deliver_and_keep(request: Request) -> None:
        if request.outputs is not None:
            cache.put(key, request.outputs)
        deliver(request)

    return deliver_and_keep


def _run(executor: Executor, inputs: dict[str, Array]) -> dict[str, Array]:
    outputs = executor.run(inputs)
    check_outputs(outputs, executor.signature)
    return outputs


def _row_bytes(signature: Signature) -> int:
    """Returns the least bytes of a row and its answer, at least 1. Free axes count as 1."""
    total = 0
    for spec in (*signature.inputs, *signature.outputs):
        sizes = [1 if size is None else size for size in spec.shape[1:]]
        total += math.prod(sizes) * find_dtype(spec.dtype).itemsize
    return max(total, 1)


def _open(model: Any, options: ModelOptions) -> Executor:
    if options.isolated:
        sources = options.custom_objects_from
        return IsolatedModel(
            model, sources, batch_timeout=options.batch_timeout, threads=options.threads
        )
    return open_executor(model, options.custom_objects_from, options.threads)
