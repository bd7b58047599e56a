"""Runs the batches that `batch_queue` lets leave, on one thread for each replica of the model.

`model_version` puts requests in; `batch_queue` decides; an executor computes.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from keras_deepseek.artifacts.signature import InferenceFunction
from keras_deepseek.inference.batching.batch import Batch, Request
from keras_deepseek.inference.batching.batch_queue import BatchQueue
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.batch_totals import (
    BatchDecision,
    BatchStatistics,
    BatchTotals,
)
from keras_deepseek.inference.batching.deadline_watch import DeadlineWatch
from keras_deepseek.inference.batching.leave_rule import FixedRule, LeaveRule
from keras_deepseek.inference.batching.wait_rule import WaitRule
from keras_deepseek.inference.errors import ClosedError, DeadlineExceededError


def batch_buckets(batch_size: int | Literal["dynamic"], max_batch_size: int) -> tuple[int, ...]:
    """Returns the batch sizes that the model will see, rising.

    Args:
        batch_size: A fixed size, which is then the only one, or `"dynamic"`.
        max_batch_size: integer. The largest size.

    Example:

    >>> batch_buckets("dynamic", max_batch_size=24)
    (1, 2, 4, 8, 16, 24)
    """
    if batch_size != "dynamic":
        return (batch_size,)
    powers = (1 << exponent for exponent in range(max_batch_size.bit_length()))
    return tuple(sorted({*powers, max_batch_size}))


class Batcher:
    """Requests in, answers out; between them as few calls of the model as their arrival allows.

    - `batch_size="dynamic"`: whenever the model is free, what waits is taken, up to
      `max_batch_size` rows, unless waiting for more has turned out to make answers come sooner
      (`WaitRule`).
    - `batch_size=8`: batches of 8 rows; one that is not full leaves `max_wait` after its oldest
      request came.

    Each batch is padded to one of `buckets` by repeating its last row, so that a compiled model
    sees few shapes. Only requests of equal shapes (apart from the rows) share a batch. A request
    with more rows than fit is run in parts. When a batch fails, its requests are run one by one:
    only those that fail alone are answered with an error. What is cancelled, or too late, before
    its turn is not run, and a request that passes its deadline is answered with an error then.

    Args:
        replicas: sequence of functions from a dict of arrays to a dict of arrays, rows first. Each
            is called from a thread of its own.
        batch_size: `"dynamic"`, or an integer. Defaults to `"dynamic"`.
        max_batch_size: integer. Defaults to `32`.
        max_wait: float. Seconds; for a fixed batch size. Defaults to `0.005`.
        max_queue_rows: integer. Rows that may wait, and that one request may have. Defaults to
            `1024`.
        target_latency: float or `None`. Seconds within which requests are to be answered: batches
            are kept as small as that needs, and requests that would take longer are refused.
        take_turn: Function that returns a context, in which a batch is formed and run. Defaults to
            `None`: batches wait for nobody else's.
        clock: Function that returns the time in seconds. Defaults to `time.monotonic`.
        after_batch: Function that is called when requests were answered: once after each batch, on
            the thread that ran it. Defaults to `None`.
    """

    def __init__(
        self,
        replicas: Sequence[InferenceFunction],
        *,
        batch_size: int | Literal["dynamic"] = "dynamic",
        max_batch_size: int = 32,
        max_wait: float = 0.005,
        max_queue_rows: int = 1024,
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

        def make_rule() -> LeaveRule:
            if batch_size != "dynamic":
                return FixedRule(batch_size, max_wait)
            return WaitRule(max_batch_size, self.batch_time)

        self._queue = BatchQueue(
            make_rule,
            buckets=self.buckets,
            batch_time=self.batch_time,
            max_rows=max_queue_rows,
            num_replicas=len(self._replicas),
            target_latency=target_latency,
        )
        self._condition = threading.Condition()
        self._deadlines = DeadlineWatch(self._expire, clock)
        self._threads: list[threading.Thread] = []
        self._totals = BatchTotals()
        self._running: set[Batch] = set()
        self._is_given_up = False
        self._num_waiting = 0
        self._wakes_at = math.inf

    def start(self) -> None:
        """Starts the threads that run the model. What was submitted before is run now."""
        for number, run in enumerate(self._replicas):
            thread = threading.Thread(
                target=self._work, args=(run,), name=f"replica-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def submit(self, request: Request) -> None:
        """Accepts a request, which is answered once.

        Args:
            request: `Request`. Its deadline is in seconds of the batcher's clock.

        Raises:
            InvalidInputError: It has more rows than may wait.
            OverloadedError: Too many rows are waiting, or it could not be answered in time.
            ClosedError: The batcher is closed.
        """
        with self._condition:
            if self._queue.is_closing:
                raise ClosedError("The batcher is closed and accepts no request.")
            now = self._clock()
            self._queue.add(request, now)
            if self._is_early(now):
                self._condition.notify()
            if request.deadline < math.inf:
                self._deadlines.add(request)

    def check_size(self, rows: int) -> None:
        """Refuses a request of more rows than may wait, before anything is made of them.

        Args:
            rows: integer. How many it has.

        Raises:
            InvalidInputError: These are too many.
        """
        self._queue.check_size(rows)

    def cancel(self, request: Request) -> bool:
        """Takes a request out of the queue; one that runs is not answered.

        Returns:
            Whether there was no answer yet.
        """
        with self._condition:
            if not request.withdraw():
                return False
            self._queue.forget(request)
            return True

    def close(self, drain: bool = True, seconds: float | None = None) -> bool:
        """Accepts nothing more and returns when what was accepted is answered.

        Args:
            drain: boolean. Whether what still waits is run; otherwise it is answered with a
                `ClosedError`. Defaults to `True`.
            seconds: float. After these, what waits or runs is answered with a `ClosedError`. A call
                of the model that hangs keeps its thread. Defaults to `None`: there is no limit.

        Returns:
            Whether no call of the model is left.
        """
        with self._condition:
            self._queue.is_closing = True
            abandoned = [] if drain else self._queue.clear()
            self._condition.notify_all()
        for request in abandoned:
            request.fail(ClosedError("The batcher was closed before the request's turn came."))
        self._after_batch()
        if not self._threads:
            self._work(self._replicas[0])
        has_ended = self._join(seconds)
        if not has_ended:
            self._give_up()
        self._deadlines.close()
        return has_ended

    def statistics(self) -> BatchStatistics:
        """Returns what was done so far."""
        with self._condition:
            return self._totals.statistics(
                waiting_rows=self._queue.rows,
                queue_age=self._queue.age(self._clock()),
                overhead=self.batch_time.overhead,
                per_row=self.batch_time.per_row,
                replicas=len(self._replicas),
            )

    def _work(self, run: InferenceFunction) -> None:
        while self._wait_until_due():
            with self._take_turn():
                self._expire()
                with self._condition:
                    batch = self._queue.next_batch(self._clock())
                    if batch is None:  # Another replica took it.
                        continue
                    self._running.add(batch)
                self._answer(batch, run)
                self._after_batch()
                with self._condition:
                    self._running.remove(batch)
                    self._queue.free(self._clock())

    def _join(self, seconds: float | None) -> bool:
        """Waits for the threads; returns whether all have ended. Time is the system's here."""
        until = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if until is None else max(until - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _give_up(self) -> None:
        """Answers all that waits or runs with an error."""
        with self._condition:
            self._is_given_up = True
            requests = self._queue.clear()
            requests += [part.request for batch in self._running for part in batch.slices]
        for request in requests:
            request.fail(ClosedError("The batcher was closed, and the model did not end in time."))
        self._after_batch()

    def _is_early(self, now: float) -> bool:
        """Whether a thread that waits would wake too late. Waking one for nothing is dear."""
        if not self._num_waiting:
            return False
        return self._queue.is_due(now) or self._queue.next_time() < self._wakes_at

    def _wait_until_due(self) -> bool:
        """Returns whether a batch is due; otherwise the batcher is closed, and nothing waits."""
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
        """Lets the lock go until something is due."""
        self._num_waiting += 1
        self._wakes_at = min(until, self._wakes_at)
        try:
            self._condition.wait(None if until == math.inf else max(until - now, 0.0))
        finally:
            self._num_waiting -= 1
            self._wakes_at = math.inf

    def _answer(self, batch: Batch, run: InferenceFunction) -> None:
        error = self._try(batch, run)
        if error is None:
            return
        singles = batch.split() if len(batch.slices) > 1 else []
        for single in singles:
            if self._is_given_up:
                return
            single_error = self._try(single, run)
            if single_error is not None:
                self._fail(single, single_error)
        if not singles:
            self._fail(batch, error)

    def _try(self, batch: Batch, run: InferenceFunction) -> BaseException | None:
        """Runs a batch and answers its requests, or returns what went wrong."""
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
        # Whatever it is, it must not end the thread: requests would hang.
        except BaseException as error:  # noqa: BLE001
            return error
        return None

    def _fail(self, batch: Batch, error: BaseException) -> None:
        batch.fail(error)
        with self._condition:
            for part in batch.slices:  # What is left of a request of several parts is not run.
                self._queue.forget(part.request)

    def _record(self, batch: Batch, size: int, start: float, end: float, is_measured: bool) -> None:
        """Keeps what was decided, and what the model took: of a batch that failed, that is none."""
        rows = batch.rows
        decision = BatchDecision(
            batch.reason, rows, size - rows, batch.queue_age, end - start, left=start
        )
        for part in batch.slices:
            part.request.decision = decision
        with self._condition:
            if is_measured:
                self.batch_time.add(size, end - start)
            self._totals.add(decision)

    def _expire(self) -> None:
        """Answers those whose deadline has passed, whether they wait or run."""
        if not self._deadlines.is_due(self._clock()):
            return
        with self._condition:
            late = self._deadlines.take_due(self._clock())
            for request in late:
                self._queue.forget(request)
        for request in late:
            request.fail(DeadlineExceededError("The deadline passed before the answer was there."))
        if late:
            self._after_batch()
