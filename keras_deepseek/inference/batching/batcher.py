"""The threads that run the batches of a queue, one for each replica of the model.

`model_version` submits requests, `batch_queue` decides, an executor computes.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from keras_deepseek.artifacts.signature import InferenceFunction
from keras_deepseek.inference.batching.batch import Batch, BatchDecision, Request
from keras_deepseek.inference.batching.batch_queue import BatchQueue
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.batch_totals import BatchStatistics, BatchTotals
from keras_deepseek.inference.batching.batching_policy import (
    AdaptivePolicy,
    BatchingPolicy,
    FixedPolicy,
)
from keras_deepseek.inference.batching.late_requests import DeadlineWatch, find_disconnected
from keras_deepseek.inference.errors import ClosedError, DeadlineExceededError

_MAX_WAIT = 0.005
"""Seconds that a batch of a fixed size waits by default."""


def batch_buckets(batch_size: int | Literal["dynamic"], max_batch_size: int) -> tuple[int, ...]:
    """Returns the batch sizes that the model will see, rising.

    For `"dynamic"` they are the powers of two below `max_batch_size`, and `max_batch_size` itself.
    """
    if batch_size != "dynamic":
        return (batch_size,)
    powers = (1 << exponent for exponent in range(max_batch_size.bit_length()))
    return tuple(sorted({*powers, max_batch_size}))


class Batcher:
    """Answers requests with as few calls of the model as their arrival allows.

    - `batch_size="dynamic"`: a free model takes the waiting requests, up to `max_batch_size` rows,
      unless waiting for more makes answers come sooner (`AdaptivePolicy`).
    - `batch_size=8`: batches of 8 rows. A batch that is not full leaves `max_wait` seconds after
      its oldest request came.

    Each batch is padded to one of `buckets` by repeating its last row, so that a compiled model
    sees few shapes. Only requests of equal shapes, apart from the rows, share a batch. A request
    with too many rows runs in several batches. When a batch fails, its requests run one by one, and
    only those that fail alone get an error. Cancelled and late requests are not run, nor those of
    clients that have hung up. A request gets an error when its deadline passes.

    `max_queue_rows` limits the waiting rows, and the rows of one request; with `None`, their time
    and bytes do (`BatchQueue`). With `target_latency`, in seconds, batches are kept small enough,
    and requests that would take longer are refused. Each replica has its own thread. `take_turn`
    returns a context manager in which a batch is formed and run; with `None`, batches wait for no
    other model. `after_batch` is called after each batch, on the thread that ran it.
    """

    def __init__(
        self,
        replicas: Sequence[InferenceFunction],
        *,
        batch_size: int | Literal["dynamic"] = "dynamic",
        max_batch_size: int = 32,
        max_wait: float | None = None,
        max_queue_rows: int | None = None,
        row_bytes: int = 1,
        target_latency: float | None = None,
        take_turn: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        after_batch: Callable[[], None] | None = None,
    ) -> None:
        self.buckets = batch_buckets(batch_size, max_batch_size)
        self.batch_time = BatchTime()
        self._replicas = tuple(replicas)
        self._take_turn = take_turn or contextlib.nullcontext
        self._clock = clock
        self._after_batch = after_batch or (lambda: None)

        def make_policy() -> BatchingPolicy:
            if batch_size != "dynamic":
                return FixedPolicy(batch_size, _MAX_WAIT if max_wait is None else max_wait)
            return AdaptivePolicy(self.buckets, self.batch_time)

        self._queue = BatchQueue(
            make_policy,
            buckets=self.buckets,
            batch_time=self.batch_time,
            max_rows=max_queue_rows,
            row_bytes=row_bytes,
            num_replicas=len(self._replicas),
            target_latency=target_latency,
        )
        self._condition = threading.Condition()
        self._deadlines = DeadlineWatch[Request](self._expire, clock)
        self._threads: list[threading.Thread] = []
        self._totals = BatchTotals()
        self._running: set[Batch] = set()
        self._is_given_up = False
        self._num_waiting = 0
        self._wakes_at = math.inf
        """The time when the first sleeping thread wakes by itself."""

    def start(self) -> None:
        """Starts the threads. Requests that were submitted before run now."""
        for number, run in enumerate(self._replicas):
            thread = threading.Thread(
                target=self._work, args=(run,), name=f"replica-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def submit(self, request: Request) -> None:
        """Queues a request, which gets exactly one answer.

        The request's deadline is a time of the batcher's clock. Raises `InvalidInputError` if the
        request alone is too large, `OverloadedError` if too many rows wait or it would be late, and
        `ClosedError` if the batcher is closed.
        """
        with self._condition:
            if self._queue.is_closing:
                raise ClosedError("The batcher is closed and accepts no requests.")
            now = self._clock()
            self._queue.add(request, now)
            if self._is_early(now):
                self._condition.notify()
            if request.deadline < math.inf:
                self._deadlines.add(request)

    @property
    def most_rows(self) -> int:
        """The most rows of one request."""
        return self._queue.most_rows

    def check_size(self, rows: int) -> None:
        """Raises an `InvalidInputError` if a request has more rows than may wait."""
        self._queue.check_size(rows)

    def check_room(self, rows: int) -> None:
        """Raises an `OverloadedError` if there is no room for a number of rows without a deadline.

        The check is fast, and takes no lock, unless more than a full batch would wait.
        """
        if self._queue.rows + rows > self.buckets[-1]:
            with self._condition:
                self._queue.check_room(rows, math.inf, self._clock())

    def cancel(self, request: Request) -> bool:
        """Removes a request, or drops its answer if it runs; returns False if it was answered."""
        with self._condition:
            if not request.withdraw():
                return False
            self._queue.forget(request)
            return True

    def close(self, seconds: float | None = None) -> bool:
        """Refuses new requests, and returns when the accepted ones are answered.

        After `seconds`, requests without an answer get a `ClosedError`. Returns False if a call of
        the model has not returned by then: its thread goes on.
        """
        with self._condition:
            self._queue.is_closing = True
            self._condition.notify_all()
        self._after_batch()
        if not self._threads:  # It was never started: the queued requests run here.
            self._work(self._replicas[0])
        has_ended = self._join(seconds)
        if not has_ended:
            self._give_up()
        self._deadlines.close()
        return has_ended

    def statistics(self) -> BatchStatistics:
        """Returns the totals so far."""
        with self._condition:
            return self._totals.statistics(
                waiting_rows=self._queue.rows,
                queue_age=self._queue.age(self._clock()),
                overhead=self.batch_time.overhead,
                per_row=self.batch_time.per_row,
                replicas=len(self._replicas),
            )

    def _work(self, run: InferenceFunction) -> None:
        """Runs the batches that are due on one replica, until the batcher is closed and empty."""
        while self._wait_until_due():
            with self._take_turn():
                self._expire()
                with self._condition:
                    batch = self._next_batch()
                    if batch is None:
                        continue
                    self._running.add(batch)
                self._answer(batch, run)
                self._after_batch()
                with self._condition:
                    self._running.remove(batch)
                    self._queue.free(self._clock())

    def _next_batch(self) -> Batch | None:
        """Returns a batch without the requests of clients that have hung up.

        Returns `None` if the batch has no request left, or if another replica has taken it.
        """
        batch = self._queue.next_batch(self._clock())
        if batch is not None and (disconnected := find_disconnected(batch)):
            for request in disconnected:
                request.withdraw()
                self._queue.forget(request)
            batch.drop_over()
            if not batch.slices:
                self._queue.free(self._clock())
                return None
        return batch

    def _join(self, seconds: float | None) -> bool:
        """Waits for the batcher's threads to end, in system time.

        Returns true if all have ended.
        """
        until = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if until is None else max(until - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _give_up(self) -> None:
        with self._condition:
            self._is_given_up = True
            requests = self._queue.clear()
            requests += [part.request for batch in self._running for part in batch.slices]
        for request in requests:
            request.fail(ClosedError("The batcher was closed, and the model did not end in time."))
        self._after_batch()

    def _is_early(self, now: float) -> bool:
        """Returns true if a batch is due before a sleeping thread would wake.

        Needless wake-ups are expensive.
        """
        if not self._num_waiting:
            return False
        return self._queue.is_due(now) or self._queue.next_time() < self._wakes_at

    def _wait_until_due(self) -> bool:
        """Returns true when a batch is due, and false when the batcher is closed and empty."""
        while True:
            self._expire()
            with self._condition:
                now = self._clock()
                if self._queue.is_due(now):
                    return True
                if self._queue.is_closing:
                    return False
                self._sleep(self._queue.next_time(), now)

    def _sleep(self, until: float, now: float) -> None:
        """Releases the lock until a batch is due, a request comes, or the batcher closes."""
        self._num_waiting += 1
        self._wakes_at = min(until, self._wakes_at)
        try:
            self._condition.wait(None if until == math.inf else max(until - now, 0.0))
        finally:
            self._num_waiting -= 1
            self._wakes_at = math.inf

    def _answer(self, batch: Batch, run: InferenceFunction) -> None:
        if self._try(batch, run):
            return
        for single in batch.split():
            if self._is_given_up:
                return
            self._try(single, run)
        batch.slices = []

    def _try(self, batch: Batch, run: InferenceFunction) -> bool:
        """Runs a batch and answers its requests.

        Returns False if a batch of several requests fails: they are to be tried one by one.
        """
        size = self._queue.bucket(batch.rows)
        start = self._clock()
        try:
            is_measured = False
            try:
                outputs = run(batch.stack(size))
                is_measured = True
            finally:
                self._record(batch, size, start, self._clock(), is_measured)
            self._expire()
            batch.distribute(outputs, size)
        # No error may end the thread: its requests would never be answered.
        except BaseException as error:  # noqa: BLE001
            if len(batch.slices) > 1:
                return False
            self._fail(batch, error)
        return True

    def _fail(self, batch: Batch, error: BaseException) -> None:
        batch.fail(error)
        with self._condition:
            for part in batch.slices:  # The other parts of a failed request are not run.
                self._queue.forget(part.request)
        # The traceback has the batch. Its requests have the error, and large inputs: without this
        # reference cycle they do not wait for the garbage collector.
        batch.slices = []

    def _record(self, batch: Batch, size: int, start: float, end: float, is_measured: bool) -> None:
        """Adds a batch that has run to the totals.

        The time of a batch that failed is not used for predictions.
        """
        rows = batch.rows
        decision = BatchDecision(
            batch.reason, rows, size - rows, batch.queue_age, end - start, started=start
        )
        for part in batch.slices:
            part.request.decision = decision
        with self._condition:
            if is_measured:
                self.batch_time.add(size, end - start)
            self._totals.add(decision)

    def _expire(self) -> None:
        """Answers queued and running requests whose deadline has passed with an error."""
        if not self._deadlines.is_due(self._clock()):
            return
        with self._condition:
            late = self._deadlines.take_due(self._clock())
            for request in late:
                self._queue.forget(request)
        for request in late:
            request.fail(DeadlineExceededError("The deadline passed before the answer was ready."))
        if late:
            self._after_batch()
