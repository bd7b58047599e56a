"""Groups single requests into batches and runs them on the one thread that calls the model.

`engine` puts requests in; `batch_queue` decides; an executor computes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference.batch import Batch, Reason, Request
from keras_deepseek.inference.batch_queue import BatchQueue
from keras_deepseek.inference.errors import ClosedError

NUM_DECISIONS = 256
"""How many of the last decisions are kept."""


@dataclass(frozen=True)
class BatchDecision:
    """What left, and why.

    Args:
        reason: string. `"full"`, `"idle"`, `"waited"`, `"closing"` or `"retried"`.
        rows: integer. Rows of requests.
        padded_rows: integer. Rows that were added to fill a bucket.
        queue_age: float. Seconds that the oldest request had waited.
    """

    reason: Reason
    rows: int
    padded_rows: int
    queue_age: float


@dataclass(frozen=True)
class BatchStatistics:
    """What a batcher has done so far.

    Args:
        batches: integer. Calls of the model.
        rows: integer. Rows of requests that they held.
        padded_rows: integer. Rows that were added to fill buckets.
        decisions: tuple of `BatchDecision`: the last ones, oldest first.
    """

    batches: int
    rows: int
    padded_rows: int
    decisions: tuple[BatchDecision, ...]


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
    """Requests in, futures out; between them as few calls of the model as their arrival allows.

    - `batch_size="dynamic"`: whenever the model is free, everything that waits is taken at once, up
      to `max_batch_size` rows. It never waits for more to come.
    - `batch_size=8`: batches of 8 rows; one that is not full leaves `max_wait` after its oldest
      request came.

    Each batch is padded to one of `buckets` by repeating its last row, so that a compiled model
    sees few shapes. Only requests of equal shapes (apart from the rows) share a batch. A request
    with more rows than fit is run in parts. When a batch fails, its requests are run one by one:
    only those that fail alone are answered with an error. A request that is cancelled before its
    turn is not run.

    Args:
        run: Function from a dict of arrays to a dict of arrays, rows first.
        batch_size: `"dynamic"`, or an integer. Defaults to `"dynamic"`.
        max_batch_size: integer. Defaults to `32`.
        max_wait: float. Seconds; for a fixed batch size. Defaults to `0.005`.
        max_queue_rows: integer. Rows that may wait. Defaults to `1024`.
        clock: Function that returns the time in seconds. Defaults to `time.monotonic`.
        after_batch: Function that is called once after each batch, on the thread that ran it, when
            all of its futures are complete. Defaults to `None`.
    """

    def __init__(
        self,
        run: Callable[[dict[str, Array]], dict[str, Array]],
        *,
        batch_size: int | Literal["dynamic"] = "dynamic",
        max_batch_size: int = 32,
        max_wait: float = 0.005,
        max_queue_rows: int = 1024,
        clock: Callable[[], float] = time.monotonic,
        after_batch: Callable[[], None] | None = None,
    ) -> None:
        self.buckets = batch_buckets(batch_size, max_batch_size)
        self._run = run
        self._clock = clock
        self._after_batch = after_batch or (lambda: None)
        self._queue = BatchQueue(
            batch_size=None if batch_size == "dynamic" else batch_size,
            max_batch_size=max_batch_size,
            max_wait=max_wait,
            max_rows=max_queue_rows,
        )
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._batches = self._rows = self._padded_rows = 0
        self._decisions: deque[BatchDecision] = deque(maxlen=NUM_DECISIONS)

    def start(self) -> None:
        """Starts the thread that runs the model. What was submitted before is run now."""
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, inputs: dict[str, Array]) -> Future[dict[str, Array]]:
        """Accepts a request.

        Args:
            inputs: dict of arrays by name, rows first.

        Returns:
            A `concurrent.futures.Future` of the outputs by name.

        Raises:
            OverloadedError: Too many rows are waiting.
            ClosedError: The batcher is closed.
        """
        request = Request(inputs)
        with self._condition:
            if self._queue.is_closing:
                raise ClosedError("The batcher is closed and accepts no request.")
            self._queue.add(request, self._clock())
            self._condition.notify()
        return request.future

    def close(self, drain: bool = True) -> None:
        """Accepts nothing more and returns when what was accepted is answered.

        Args:
            drain: boolean. Whether what still waits is run; otherwise it is answered with a
                `ClosedError`. Defaults to `True`.
        """
        with self._condition:
            self._queue.is_closing = True
            abandoned = [] if drain else self._queue.clear()
            self._condition.notify()
        for request in abandoned:
            request.fail(ClosedError("The batcher was closed before the request's turn came."))
        self._after_batch()
        if self._thread is None:
            self._work()
        else:
            self._thread.join()

    def statistics(self) -> BatchStatistics:
        """Returns what was done so far."""
        with self._condition:
            return BatchStatistics(
                self._batches, self._rows, self._padded_rows, tuple(self._decisions)
            )

    def _work(self) -> None:
        while (batch := self._wait_for_batch()) is not None:
            self._answer(batch)
            self._after_batch()

    def _wait_for_batch(self) -> Batch | None:
        with self._condition:
            while True:
                now = self._clock()
                batch = self._queue.next_batch(now)
                if batch is not None:
                    return batch
                if self._queue.is_closing:
                    return None
                time_due = self._queue.next_time()
                self._condition.wait(None if time_due is None else max(time_due - now, 0.0))

    def _answer(self, batch: Batch) -> None:
        error = self._try(batch)
        if error is None:
            return
        if len(batch.slices) == 1:
            batch.fail(error)
            return
        for single in batch.split():
            error = self._try(single)
            if error is not None:
                single.fail(error)

    def _try(self, batch: Batch) -> BaseException | None:
        """Runs a batch and answers its requests, or returns what went wrong."""
        size = next(size for size in self.buckets if size >= batch.rows)
        self._record(batch, size)
        try:
            batch.distribute(self._run(batch.stack(size)), size)
        # Whatever it is, it must not end the thread: requests would hang.
        except BaseException as error:  # noqa: BLE001
            return error
        return None

    def _record(self, batch: Batch, size: int) -> None:
        padded = size - batch.rows
        with self._condition:
            self._batches += 1
            self._rows += batch.rows
            self._padded_rows += padded
            self._decisions.append(BatchDecision(batch.reason, batch.rows, padded, batch.queue_age))
