"""The queue of the requests that wait for one model.

It forms batches, decides when they leave, and refuses requests.

It never waits, and every call gets the time as an argument. `shape_queue` holds requests of equal
shapes. `batching_policy` says how long they wait for more. `batcher` runs the
batches.
"""

import math
from collections.abc import Callable

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.batch import Batch, Reason, Request
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.batching_policy import BatchingPolicy
from keras_deepseek.inference.batching.shape_queue import ShapeQueue
from keras_deepseek.inference.errors import OverloadedError

MAX_SHAPE_QUEUES = 64
"""The number of queues that are kept, also empty ones, for what their policies have learned."""

STANDING_SECONDS = 0.2
"""The shortest `patience` of a queue. Answers then come well within half a second, and a fast model
can still work off a burst of many batches."""

STANDING_BATCHES = 4
"""The `patience` of a queue in full batches, if that is longer. At a load that the model can bear,
requests rarely wait for more than two."""

SURE_ROWS = 1024
"""The rows that may wait by default, whatever they take."""

BULK_SECONDS = 5.0
"""The longest expected wait behind `SURE_ROWS` of a request that has more rows than a batch. For
smaller ones, whose users wait for them, it is the `patience`."""

QUEUE_BYTES = 2**28
"""The bytes that requests may take with their answers, if more than `SURE_ROWS` wait."""

REQUEST_BYTES = 2**20
"""The bytes of one request. HTTP servers read no body, and parse no JSON, that is far larger."""

LEAST_SAVING = 0.0005
"""Seconds. A smaller difference between the times of two batch sizes may be chance."""

HANGING = 5
"""The age of a queue, relative to its patience, from which its model seems to hang: no estimate is
needed then. The oldest request of a queue that stands waits for about the patience itself."""


class BatchQueue:
    """Requests that wait for a model, in one queue for each set of shapes.

    A request that does not fit into a batch continues in the next one. A request that can't be
    answered in time, by its deadline or by `target_latency` in seconds, is refused at once. The
    caller adds the measured times to `batch_time`.

    Without both, the wait is bounded by controlled delay. A queue stands if it has not been empty
    for longer than `patience`, however many requests leave it. While it stands, a request that
    would wait longer than `patience` is refused, and those in the queue are answered in time. A
    burst is not refused if the model works it off before the queue stands.

    `max_rows` limits the waiting rows, and the rows of one request. With `None`, more than
    `SURE_ROWS` wait if a batch was measured and their time and bytes allow it. `row_bytes` is the
    least that a row and its answer take.

    References: Nichols and Jacobson, "Controlling Queue Delay", 2012; Maurer, "Fail at Scale",
    2015.
    """

    def __init__(
        self,
        make_policy: Callable[[], BatchingPolicy],
        *,
        buckets: tuple[int, ...],
        batch_time: BatchTime,
        max_rows: int | None = None,
        row_bytes: int = 1,
        num_replicas: int = 1,
        target_latency: float | None = None,
    ) -> None:
        self.rows = 0
        self.is_closing = False
        self._make_policy = make_policy
        self._buckets = buckets
        self._time = batch_time
        self.most_rows = max_rows or max(SURE_ROWS, REQUEST_BYTES // row_bytes)
        """The most rows of one request."""
        self._max_rows = max_rows
        self._row_bytes = row_bytes
        self._num_replicas = num_replicas
        self._target_latency = target_latency or math.inf
        self._shape_queues: dict[tuple[object, ...], ShapeQueue] = {}
        self._ends: list[float] = []
        """The expected end of each batch that runs."""
        self._standing_since = 0.0

    def add(self, request: Request, now: float) -> None:
        """Adds a request to the queue of its input shapes.

        Raises `InvalidInputError` if it alone is too large, and `OverloadedError` if too many rows
        wait or it would be late.
        """
        rows = request.waiting
        self.check_size(rows)
        self.check_room(rows, request.deadline, now, request)
        request.arrived = now
        if not self.rows:
            self._standing_since = now
        queue = self._find_shape_queue(request)
        is_first = queue.rows == 0
        queue.add(request)
        self.rows += rows
        if is_first and len(self._ends) < self._num_replicas:
            queue.policy.begin("idle", rows, now)
        else:
            queue.policy.arrive(rows, now)

    def check_size(self, rows: int) -> None:
        """Raises an `InvalidInputError` if a request has more rows than may wait."""
        if rows > self.most_rows:
            raise InvalidInputError(
                f"The request is too large: it has {rows} rows, and at most {self.most_rows} may "
                "wait. Send fewer rows at a time."
            )

    def check_room(
        self, rows: int, deadline: float, now: float, request: Request | None = None
    ) -> None:
        """Raises `OverloadedError` if too many rows wait, or `rows` more would be late.

        Without a `request`, the rows are those of requests that were not read yet.
        """
        allowed = min(deadline - now, self._target_latency)
        if self.rows + rows > (self._max_rows or SURE_ROWS):
            self._check_bulk(rows, allowed, now, request)
        # Controlled delay is for requests without a time limit: for others these seconds are 0.
        has_no_limit = allowed == math.inf
        standing_seconds = now - self._standing_since if self.rows and has_no_limit else 0.0
        # The least patience is compared first, since it need not be computed.
        if standing_seconds > STANDING_SECONDS and standing_seconds > self.patience:
            # The client of a request with many rows expects to wait longer.
            allowed = BULK_SECONDS if rows > self._buckets[-1] else self.patience
        if allowed == math.inf or not self._time.is_known:
            return
        wait = self.predict_wait(rows, now)
        age = self.age(now)
        # If the model hangs, or is much slower than before, the prediction is too low.
        if standing_seconds and self.rows >= self._limit() and age > HANGING * self.patience:
            wait = max(wait, age)
        # On a free machine a request is never refused, though the model alone may be too slow.
        is_busy = bool(self.rows or self._ends)
        if wait > allowed and is_busy:
            why = f"is needed in {allowed:.3g} s"
            if standing_seconds:
                why = f"the queue has not been empty for {standing_seconds:.3g} s"
                why += f", so {allowed:.3g} s are allowed"
            raise OverloadedError(
                f"The answer would take {wait:.3g} s, and {why}: {self.rows} rows are waiting",
                retry_after=wait,
            )

    def next_batch(self, now: float) -> Batch | None:
        """Removes and returns the batch that should run now, or `None`.

        If several queues are due, the one with a request of higher priority is first, then the one
        with the oldest request. The caller calls `free` after the batch.
        """
        limit = self._limit()
        due = self._due(limit, now)
        if not due:
            return None
        _, _, queue, reason = min(due)
        age = now - queue.oldest
        rows = queue.rows
        slices = queue.take(limit if reason == "deadline" else self._size_to_take(queue, limit))
        self.rows -= rows - queue.rows
        batch = Batch(slices, reason, age)
        self._ends.append(now + self._time.predict(self.bucket(batch.rows)))
        return batch

    def is_due(self, now: float) -> bool:
        """Returns true if `next_batch` would return a batch."""
        return bool(self._due(self._limit(), now))

    def free(self, now: float) -> None:
        """Notes that a batch has run, so that the model is free again."""
        # It does not matter which batch has ended: the one that was expected first is removed.
        self._ends.remove(min(self._ends))
        for queue in self._shape_queues.values():
            if queue.rows:
                queue.policy.begin("freed", queue.rows, now)
            else:
                queue.policy.end(now)

    def forget(self, request: Request) -> None:
        """Frees the queue space of a request that needs no answer any more."""
        queue = self._shape_queues.get(request.shape_key)
        waiting = request.waiting
        if queue is not None and queue.forget(request):
            self.rows -= waiting

    def next_time(self) -> float:
        """Returns the time when a batch is due if no request comes; infinity if none waits."""
        return min((queue.time_due() for queue in self._shape_queues.values()), default=math.inf)

    def age(self, now: float) -> float:
        """Returns the seconds that the oldest request has waited, or 0."""
        return max(
            (now - queue.oldest for queue in self._shape_queues.values() if queue.rows), default=0.0
        )

    def clear(self) -> list[Request]:
        """Removes and returns all requests."""
        self.rows = 0
        return [request for queue in self._shape_queues.values() for request in queue.clear()]

    def bucket(self, rows: int) -> int:
        """Returns the size to which a batch of a given number of rows is padded."""
        return next(size for size in self._buckets if size >= rows)

    @property
    def patience(self) -> float:
        """The seconds that a request may wait in a queue that stands."""
        return max(STANDING_SECONDS, STANDING_BATCHES * self._time.predict(self._buckets[-1]))

    def predict_wait(self, rows: int, now: float) -> float:
        """Returns the seconds after which rows that come now would be answered.

        The prediction ignores that requests of higher priority may come later, and that batches may
        leave before they are full.
        """
        limit = self._limit()
        full, remainder = divmod(self.rows + rows, limit)
        last_batch_time = self._time.predict(self.bucket(remainder)) if remainder else 0.0
        queued = (full * self._time.predict(limit) + last_batch_time) / self._num_replicas
        running = len(self._ends) >= self._num_replicas
        return queued + (max(min(self._ends) - now, 0.0) if running else 0.0)

    def _check_bulk(self, rows: int, allowed: float, now: float, request: Request | None) -> None:
        """Raises an error if rows beyond `SURE_ROWS` or `max_rows` have no room.

        The error is an `OverloadedError`, or an `InvalidInputError` if a retry would not help.
        """
        wait = self.predict_wait(rows, now)
        if allowed == math.inf:
            is_small = request is not None and rows <= self._buckets[-1]
            allowed = self.patience if is_small else BULK_SECONDS
        in_queue = sum([queue.bytes for queue in self._shape_queues.values()])
        least = (self.rows + rows) * self._row_bytes
        size = max(in_queue + (0 if request is None else request.bytes), least)
        if self._max_rows is not None:
            limit = f"at most {self._max_rows} may"
        elif not self._time.is_known:
            limit = f"at most {SURE_ROWS} may until a batch was measured"
        elif wait > allowed:
            limit = f"the answer would take {wait:.3g} s, where {allowed:.3g} s are allowed"
        elif size > QUEUE_BYTES:
            limit = f"all would take {size} bytes, where {QUEUE_BYTES} are allowed"
        else:
            return
        if request is not None and not (self.rows or self._ends):
            raise InvalidInputError(
                f"The request is too large: it has {rows} rows, and {limit}. Send fewer at a time."
            )
        raise OverloadedError(
            f"The queue is full: {self.rows} rows are waiting and {limit}. Send less at a time",
            retry_after=wait,
        )

    def _due(
        self, limit: int, now: float
    ) -> list[tuple[tuple[int, float], int, ShapeQueue, Reason]]:
        """Returns the queues with a due batch, and its reason. The least item is the first due."""
        return [
            # The number is unique, so the comparison of two items never reaches the queues.
            (queue.sort_key, number, queue, reason)
            for number, queue in enumerate(self._shape_queues.values())
            if (reason := queue.reason_to_leave(limit, now, self.is_closing)) is not None
        ]

    def _limit(self) -> int:
        """Returns the largest batch size that can run twice in sequence within `target_latency`."""
        limit = self._buckets[-1]
        if self._target_latency == math.inf:
            return limit
        fitting = [
            size for size in self._buckets if 2 * self._time.predict(size) <= self._target_latency
        ]
        return max(fitting, default=self._buckets[0])

    def _size_to_take(self, queue: ShapeQueue, limit: int) -> int:
        """Returns the rows to take: `limit`, or a smaller padded size if a row costs less there.

        For example, 20 rows are padded to 32 and take 12 ms, where 16 take 8 ms. So 16 are taken,
        and the other 4 lead the next batch. The first request is never split for that.
        """
        rows = min(queue.rows, limit)
        padded, time = self.bucket(rows), self._time.predict
        smaller = max((size for size in self._buckets if size <= rows), default=padded)
        saved = time(padded) - time(smaller)
        is_cheaper = time(smaller) * rows < time(padded) * smaller
        if is_cheaper and saved > LEAST_SAVING and queue.first.waiting <= smaller:
            return smaller
        return limit

    def _find_shape_queue(self, request: Request) -> ShapeQueue:
        queue = self._shape_queues.get(request.shape_key)
        if queue is None:
            if len(self._shape_queues) >= MAX_SHAPE_QUEUES:
                self._drop_empty_shape_queue()
            queue = self._shape_queues[request.shape_key] = ShapeQueue(
                self._make_policy(), self._time, self._target_latency, self._buckets
            )
        return queue

    def _drop_empty_shape_queue(self) -> None:
        empty = next((key for key, queue in self._shape_queues.items() if not queue.rows), None)
        if empty is not None:
            del self._shape_queues[empty]
