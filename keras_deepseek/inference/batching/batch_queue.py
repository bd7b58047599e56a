"""Decides which rows leave together, and when, and which are refused. Pure: nothing here waits.

The time is an argument of every call. `lane` holds the requests of one set of shapes, `wait_rule`
and `leave_rule` say how long they wait for company, `batcher` runs what leaves.
"""

import math
from collections.abc import Callable

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.batch import Batch, Reason, Request
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.lane import Lane
from keras_deepseek.inference.batching.leave_rule import LeaveRule
from keras_deepseek.inference.errors import OverloadedError

NUM_LANES_KEPT = 64
"""Lanes that are kept for what they have learned, though they are empty."""


class BatchQueue:
    """Requests that wait for a model, in one lane for each set of shapes.

    A request that a batch has no room for is continued in the next one. One that could not be
    answered in time, by its deadline or by `target_latency`, is refused when it comes.

    Args:
        make_rule: Function that returns a new `LeaveRule`, for a new lane.
        buckets: tuple of integers. The batch sizes that the model sees, rising.
        batch_time: `BatchTime`. What the model takes; whoever runs batches adds to it.
        max_rows: integer. Rows that may wait. A request that has more by itself is never accepted.
        num_replicas: integer. Batches that may run at the same time. Defaults to `1`.
        target_latency: float or `None`. Seconds within which requests are to be answered.
    """

    def __init__(
        self,
        make_rule: Callable[[], LeaveRule],
        *,
        buckets: tuple[int, ...],
        batch_time: BatchTime,
        max_rows: int,
        num_replicas: int = 1,
        target_latency: float | None = None,
    ) -> None:
        self.rows = 0
        self.is_closing = False
        self._make_rule = make_rule
        self._buckets = buckets
        self._time = batch_time
        self._max_rows = max_rows
        self._num_replicas = num_replicas
        self._target_latency = target_latency or math.inf
        self._lanes: dict[tuple[object, ...], Lane] = {}
        self._ends: list[float] = []

    def add(self, request: Request, now: float) -> None:
        """Puts a request into its lane.

        Raises:
            InvalidInputError: It has more rows than may wait.
            OverloadedError: Too many rows are waiting, or it could not be answered in time.
        """
        rows = request.waiting
        self.check_size(rows)
        self._check_room(request, rows, now)
        request.arrived = now
        lane = self._find_lane(request)
        is_first = lane.rows == 0
        lane.add(request)
        self.rows += rows
        if is_first and len(self._ends) < self._num_replicas:
            lane.rule.begin("idle", rows, now)
        else:
            lane.rule.arrive(rows, now)

    def check_size(self, rows: int) -> None:
        """Refuses a request that would hold up all others by itself.

        Args:
            rows: integer. How many it has.

        Raises:
            InvalidInputError: More than may wait.
        """
        if rows > self._max_rows:
            raise InvalidInputError(
                f"The request is too large: it has {rows} rows, and at most {self._max_rows} may "
                "wait. Send fewer rows at a time, or raise `max_queue_rows`."
            )

    def next_batch(self, now: float) -> Batch | None:
        """Takes the rows that are to leave now, or returns `None`.

        Where several lanes are due, one with a request of higher priority goes first, then the one
        whose oldest request is older. Whoever runs the batch calls `free` afterwards.
        """
        limit = self._limit()
        due = self._due(limit, now)
        if not due:
            return None
        _, _, lane, reason = min(due)
        age = now - lane.oldest
        rows = lane.rows
        slices = lane.take(limit)
        self.rows -= rows - lane.rows
        batch = Batch(slices, reason, age)
        self._ends.append(now + self._time.predict(self.bucket(batch.rows)))
        return batch

    def is_due(self, now: float) -> bool:
        """Returns whether `next_batch` would return one."""
        return bool(self._due(self._limit(), now))

    def free(self, now: float) -> None:
        """A batch was run: the model is free again."""
        # Which of them it was does not matter: the one that should have ended first.
        self._ends.remove(min(self._ends))
        for lane in self._lanes.values():
            if lane.rows:
                lane.rule.begin("freed", lane.rows, now)
            else:
                lane.rule.end(now)

    def forget(self, request: Request) -> None:
        """Gives back the room of a request that is over."""
        lane = self._lanes.get(request.lane)
        waiting = request.waiting
        if lane is not None and lane.forget(request):
            self.rows -= waiting

    def next_time(self) -> float:
        """Returns when a batch will be due if nothing more comes: infinity if none will be."""
        return min((lane.time_due() for lane in self._lanes.values()), default=math.inf)

    def age(self, now: float) -> float:
        """Returns the seconds that the oldest request has waited: 0 where there is none."""
        return max((now - lane.oldest for lane in self._lanes.values() if lane.rows), default=0.0)

    def clear(self) -> list[Request]:
        """Takes all requests out and returns them."""
        self.rows = 0
        return [request for lane in self._lanes.values() for request in lane.clear()]

    def bucket(self, rows: int) -> int:
        """Returns the size of the batch that the model sees for so many rows.

        Args:
            rows: integer. At most the largest bucket.
        """
        return next(size for size in self._buckets if size >= rows)

    def predict_wait(self, request: Request, now: float) -> float:
        """Returns the seconds after which a request that comes now would be answered.

        Those of higher priority that may come later are not reckoned with, nor that batches of
        several lanes are less than full.
        """
        limit = self._limit()
        full, rest = divmod(self.rows + request.waiting, limit)
        own = self._time.predict(self.bucket(rest)) if rest else 0.0
        queued = (full * self._time.predict(limit) + own) / self._num_replicas
        running = len(self._ends) >= self._num_replicas
        return queued + (max(min(self._ends) - now, 0.0) if running else 0.0)

    def _due(self, limit: int, now: float) -> list[tuple[tuple[int, float], int, Lane, Reason]]:
        return [
            (lane.urgency, number, lane, reason)
            for number, lane in enumerate(self._lanes.values())
            if (reason := lane.reason_to_leave(limit, now, self.is_closing)) is not None
        ]

    def _limit(self) -> int:
        """Returns the rows of the largest batch: where one runs, the next has to be in time too."""
        limit = self._buckets[-1]
        if self._target_latency == math.inf:
            return limit
        fitting = [
            size for size in self._buckets if 2 * self._time.predict(size) <= self._target_latency
        ]
        return max(fitting, default=self._buckets[0])

    def _check_room(self, request: Request, rows: int, now: float) -> None:
        if self.rows + rows > self._max_rows:
            raise OverloadedError(
                f"The queue is full: {self.rows} rows are waiting and at most {self._max_rows} "
                "may. Send less at a time, or raise `max_queue_rows`",
                retry_after=self.predict_wait(request, now),
            )
        allowed = min(request.deadline - now, self._target_latency)
        if allowed == math.inf or not self._time.is_known:
            return
        wait = self.predict_wait(request, now)
        # A target can be missed by the model alone, on a free machine: that refuses nobody.
        if wait > allowed and (self.rows or self._ends):
            raise OverloadedError(
                f"The answer would take {wait:.3g} s, and has to be there in {allowed:.3g} s: "
                f"{self.rows} rows are waiting",
                retry_after=wait,
            )

    def _find_lane(self, request: Request) -> Lane:
        lane = self._lanes.get(request.lane)
        if lane is None:
            if len(self._lanes) >= NUM_LANES_KEPT:
                self._drop_an_empty_lane()
            lane = self._lanes[request.lane] = Lane(
                self._make_rule(), self._time, self._target_latency, self._buckets
            )
        return lane

    def _drop_an_empty_lane(self) -> None:
        empty = next((key for key, lane in self._lanes.items() if not lane.rows), None)
        if empty is not None:
            del self._lanes[empty]
