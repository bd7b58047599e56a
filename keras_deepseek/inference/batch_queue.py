"""Decides which rows leave together, and when. Pure: the time is an argument, nothing waits."""

from collections import deque

from keras_deepseek.inference.batch import Batch, Reason, Request, Slice
from keras_deepseek.inference.errors import OverloadedError


class BatchQueue:
    """Requests in the order of their arrival, in one lane for each set of shapes.

    With `batch_size=None` whatever waits leaves at once, up to `max_batch_size` rows: the model is
    never idle while a row waits, and batches grow by themselves while it is busy. With a number, a
    batch leaves when it has that many rows, or when its oldest request has waited for `max_wait`.

    A request that a batch has no room for is continued in the next one.

    Args:
        batch_size: integer or `None`. Rows of a fixed batch.
        max_batch_size: integer. Rows of the largest batch.
        max_wait: float. Seconds that the oldest request of a fixed batch waits for others.
        max_rows: integer. Rows that may wait. A request that is larger by itself is accepted while
            nothing else waits.
    """

    def __init__(
        self, *, batch_size: int | None, max_batch_size: int, max_wait: float, max_rows: int
    ) -> None:
        self._is_fixed = batch_size is not None
        self._limit = batch_size or max_batch_size
        self._max_wait = max_wait
        self._max_rows = max_rows
        self._lanes: dict[tuple[object, ...], deque[Request]] = {}
        self.rows = 0
        self.is_closing = False

    def add(self, request: Request, now: float) -> None:
        """Puts a request at the end of its lane.

        Args:
            request: `Request`.
            now: float. The time in seconds.

        Raises:
            OverloadedError: Too many rows are waiting.
        """
        if self._is_too_much(request):
            self._drop_finished()
        if self._is_too_much(request):
            raise OverloadedError(self.rows, self._max_rows)
        request.arrived = now
        self._lanes.setdefault(request.lane, deque()).append(request)
        self.rows += request.waiting

    def next_batch(self, now: float) -> Batch | None:
        """Takes the rows that are to leave now, or returns `None`.

        Where several lanes are due, the one whose first request is oldest goes first.

        Args:
            now: float. The time in seconds.
        """
        self._drop_finished()
        for lane in sorted(self._lanes.values(), key=lambda lane: lane[0].arrived):
            reason = self._reason_to_leave(lane, now)
            if reason is None:
                continue
            arrived = lane[0].arrived
            slices = self._take(lane)
            if slices:
                return Batch(tuple(slices), reason, now - arrived)
        return None

    def next_time(self) -> float | None:
        """Returns when a batch will be due if nothing else arrives, or `None` if none will be."""
        arrivals = [lane[0].arrived for lane in self._lanes.values() if lane]
        return min(arrivals) + self._max_wait if arrivals else None

    def clear(self) -> list[Request]:
        """Takes all requests out and returns them."""
        requests = [request for lane in self._lanes.values() for request in lane]
        self._lanes.clear()
        self.rows = 0
        return requests

    def _is_too_much(self, request: Request) -> bool:
        return self.rows > 0 and self.rows + request.waiting > self._max_rows

    def _reason_to_leave(self, lane: deque[Request], now: float) -> Reason | None:
        if _has_rows(lane, self._limit):
            return "full"
        if not self._is_fixed:
            return "idle"
        if self.is_closing:
            return "closing"
        return "waited" if now >= lane[0].arrived + self._max_wait else None

    def _take(self, lane: deque[Request]) -> list[Slice]:
        slices = []
        room = self._limit
        while lane and room > 0:
            request = lane[0]
            waiting = request.waiting
            # From here on the request can't be cancelled; one that was in the meantime is skipped.
            if request.taken == 0 and not request.future.set_running_or_notify_cancel():
                lane.popleft()
                self.rows -= waiting
                continue
            stop = min(request.rows, request.taken + room)
            slices.append(Slice(request, request.taken, stop))
            room -= stop - request.taken
            request.taken = stop
            if stop == request.rows:
                lane.popleft()
            self.rows -= waiting if stop == request.rows else waiting - request.waiting
        return slices

    def _drop_finished(self) -> None:
        """Forgets what was cancelled, or failed in an earlier part, and lanes without a request."""
        for key, lane in list(self._lanes.items()):
            finished = [request for request in lane if request.future.done()]
            for request in finished:
                lane.remove(request)
                self.rows -= request.waiting
            if not lane:
                del self._lanes[key]


def _has_rows(lane: deque[Request], limit: int) -> bool:
    rows = 0
    for request in lane:
        rows += request.rows - request.taken
        if rows >= limit:
            return True
    return False
