"""The requests that may share a batch, in the order in which they leave the queue."""

import heapq
import itertools
import math

from keras_deepseek.inference.batching.batch import Reason, Request, Slice
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.batching_policy import BatchingPolicy

PART_OF_BATCH = 0.25
"""The fraction by which a batch may take longer than expected without missing a deadline."""

PART_OF_LIMIT = 0.1
"""The fraction of a request's time limit that is reserved to deliver the answer."""

LEAST_MARGIN = 0.002
"""Seconds by which a thread may wake late on a busy machine."""


class ShapeQueue:
    """Requests of equal shapes: higher priorities first, then in the order of arrival.

    Answered, cancelled and late requests are skipped: `forget` has freed their room already. Empty
    `buckets` allow any batch size.
    """

    def __init__(
        self,
        policy: BatchingPolicy,
        batch_time: BatchTime,
        target_latency: float = math.inf,
        buckets: tuple[int, ...] = (),
    ) -> None:
        self.policy = policy
        self.rows = 0
        self.bytes = 0
        self._time = batch_time
        self._target_latency = target_latency
        self._buckets = buckets
        self._order = itertools.count()
        self._heap: list[tuple[int, int, Request]] = []
        self._arrivals: dict[Request, None] = {}
        self._deadlines: list[tuple[float, int, Request]] = []

    def add(self, request: Request) -> None:
        """Adds a request to the queue. Its `arrived` is set already."""
        number = next(self._order)
        heapq.heappush(self._heap, (-request.priority, number, request))
        self._arrivals[request] = None
        if request.deadline < math.inf:
            heapq.heappush(self._deadlines, (request.deadline, number, request))
        self.rows += request.waiting
        self.bytes += request.bytes

    def forget(self, request: Request) -> bool:
        """Removes a request that needs no answer any more. Returns false if it was not here."""
        if request not in self._arrivals:
            return False
        del self._arrivals[request]
        self.rows -= request.waiting
        self.bytes -= request.bytes
        if not self._arrivals:
            self._heap.clear()
            self._deadlines.clear()
        return True

    def clear(self) -> list[Request]:
        """Removes and returns all requests."""
        requests = list(self._arrivals)
        for request in requests:
            self.forget(request)
        return requests

    @property
    def first(self) -> Request:
        """The request that leaves first."""
        return self._first()[2]

    @property
    def sort_key(self) -> tuple[int, float]:
        """The sort key of queues that are due: priority of the first request, oldest arrival."""
        return self._first()[0], self.oldest

    @property
    def oldest(self) -> float:
        """The time when the queue's oldest request arrived."""
        return next(iter(self._arrivals)).arrived

    def reason_to_leave(self, limit: int, now: float, is_closing: bool) -> Reason | None:
        """Returns why a batch of up to `limit` rows should leave now, or `None` to wait.

        `is_closing` tells that no more requests come.
        """
        if not self._arrivals:
            return None
        plan = self.policy.plan(self.oldest)
        if self.rows >= limit:
            return "full"
        if is_closing:
            return "closing"
        if now >= plan.time:
            return "waited" if plan.time > self.oldest and plan.rows else "idle"
        if self.rows >= plan.rows:
            return "gathered"
        return "deadline" if now >= self._last_moment() else None

    def time_due(self) -> float:
        """Returns the time when the queue's next batch leaves if no request comes."""
        if not self._arrivals:
            return math.inf
        return min(self.policy.plan(self.oldest).time, self._last_moment())

    def take(self, limit: int) -> list[Slice]:
        """Removes up to `limit` rows from the queue, and returns them as slices of requests.

        A request with more rows continues in the next batch.
        """
        slices: list[Slice] = []
        room = limit
        while self._arrivals and room > 0:
            request = self._first()[2]
            waiting = request.waiting
            stop = min(request.rows, request.taken_rows + room)
            slices.append(Slice(request, request.taken_rows, stop))
            room -= stop - request.taken_rows
            if stop == request.rows:
                self.forget(request)
                request.taken_rows = stop
            else:
                request.taken_rows = stop
                self.rows -= waiting - request.waiting
        return slices

    def _first(self) -> tuple[int, int, Request]:
        while self._heap[0][2] not in self._arrivals:
            heapq.heappop(self._heap)
        return self._heap[0]

    def _last_moment(self) -> float:
        """Returns the latest time to leave that meets the first deadline and the target latency."""
        while self._deadlines and self._deadlines[0][2] not in self._arrivals:
            heapq.heappop(self._deadlines)
        moment = math.inf
        if self._target_latency < math.inf:
            moment = self._moment_for(self.oldest, self._target_latency)
        if self._deadlines:
            deadline, _, request = self._deadlines[0]
            moment = min(moment, self._moment_for(request.arrived, deadline - request.arrived))
        return moment

    def _moment_for(self, arrived: float, allowed: float) -> float:
        """Returns the latest time at which rows must leave to be answered in `allowed` seconds.

        Until a batch was measured, it is `allowed / 2` after the arrival.
        """
        if not self._time.is_known:
            return arrived + allowed / 2
        size = next((size for size in self._buckets if size >= self.rows), self.rows)
        seconds = (1 + PART_OF_BATCH) * self._time.predict(size)
        return arrived + allowed - seconds - LEAST_MARGIN - PART_OF_LIMIT * allowed
