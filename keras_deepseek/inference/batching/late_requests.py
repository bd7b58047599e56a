"""Finds requests whose answers would come too late: a deadline has passed, or a client hung up."""

import heapq
import itertools
import math
import select
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from keras_deepseek.inference.batching.batch import Batch, Request

NUM_KEPT = 1024
"""With more requests than these, answered ones are removed from the heap."""


class TimedRequest(Protocol):
    """A request that is useless after its deadline."""

    @property
    def deadline(self) -> float:
        """Seconds of the watch's clock."""

    @property
    def is_over(self) -> bool:
        """True if it was answered."""


RequestT = TypeVar("RequestT", bound=TimedRequest)


class DeadlineWatch(Generic[RequestT]):
    """Calls `wake` on its own thread when a deadline passes, even if all replicas are busy.

    `wake` should call `take_due`. The first deadline starts the thread.
    """

    def __init__(self, wake: Callable[[], None], clock: Callable[[], float]) -> None:
        self._wake = wake
        self._clock = clock
        self._condition = threading.Condition()
        self._order = itertools.count()
        # An answered request may have a late deadline, and large inputs: it is not kept.
        self._heap: list[tuple[float, int, weakref.ref[RequestT]]] = []
        self._limit = NUM_KEPT
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def add(self, request: RequestT) -> None:
        """Adds the deadline of a request to the watched ones."""
        with self._condition:
            number = next(self._order)
            heapq.heappush(self._heap, (request.deadline, number, weakref.ref(request)))
            if len(self._heap) > self._limit:
                self._heap = [
                    entry
                    for entry in self._heap
                    if (live_request := entry[2]()) and not live_request.is_over
                ]
                heapq.heapify(self._heap)
                self._limit = max(NUM_KEPT, 2 * len(self._heap))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="deadlines", daemon=True)
                self._thread.start()
            elif self._heap and self._heap[0][1] == number:
                self._condition.notify()

    def is_due(self, now: float) -> bool:
        """Returns true if a deadline has passed. It is fast, and takes no lock."""
        try:
            return self._heap[0][0] <= now
        except IndexError:
            return False

    def take_due(self, now: float) -> list[RequestT]:
        """Returns the unanswered requests whose deadline has passed, each once."""
        late = []
        with self._condition:
            while self._heap and self._heap[0][0] <= now:
                request = heapq.heappop(self._heap)[2]()
                if request is not None and not request.is_over:
                    late.append(request)
        return late

    def close(self) -> None:
        """Ends the thread."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._condition:
                if self._is_closed:
                    return
                due = self._heap[0][0] if self._heap else math.inf
                now = self._clock()
                if due > now:
                    # A thread can't wait longer than that. The loop then waits again.
                    longest = min(due - now, threading.TIMEOUT_MAX)
                    self._condition.wait(None if due == math.inf else longest)
                    continue
            self._wake()


def find_disconnected(batch: Batch) -> list[Request]:
    """Returns the batch's requests whose clients have closed their connection, by one system call.

    An event loop reads a request first, and the end of its connection in a later turn. Between the
    two, a free model may take the request.
    """
    connected = [
        (connection, part.request)
        for part in batch.slices
        if (connection := part.request.connection) is not None
    ]
    if not connected:
        return []
    closed = find_closed(connection for connection, _ in connected)
    return [request for connection, request in connected if connection in closed]


def find_closed(connections: Iterable[int]) -> set[int]:
    """Returns the descriptors of the connections whose other end is closed, by one system call."""
    poll = select.poll()
    for connection in connections:
        # Only Linux can tell a closed end apart from data that waits.
        poll.register(connection, getattr(select, "POLLRDHUP", 0))
    return {connection for connection, _ in poll.poll(0)}
