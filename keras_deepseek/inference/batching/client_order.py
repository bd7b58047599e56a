"""Delivers a client's answers in the order of its requests, whatever order replicas finish in."""

from collections import deque
from collections.abc import Callable, Hashable
from threading import RLock

from keras_deepseek.inference.batching.batch import Request

Deliver = Callable[[Request], None]


class ClientOrder:
    """Holds an answer back until the answers of the client's earlier requests were delivered."""

    def __init__(self) -> None:
        # It is held during delivery: two threads must not deliver to one client at once.
        self._lock = RLock()
        self._queues: dict[Hashable, deque[tuple[Request, Deliver]]] = {}

    def add(self, client: Hashable, request: Request, deliver: Deliver) -> None:
        """Adds a client's next request to the order. The caller calls `settle` when it is over.

        `deliver` is called in the client's order if there is an answer.
        """
        with self._lock:
            self._queues.setdefault(client, deque()).append((request, deliver))

    def settle(self, client: Hashable) -> None:
        """Delivers the finished answers of a client, up to the first that is not finished."""
        with self._lock:
            queue = self._queues.get(client)
            while queue and queue[0][0].is_over:
                request, deliver = queue.popleft()
                if request.has_answer:
                    deliver(request)
            if not queue:
                self._queues.pop(client, None)
