"""Hands a client its answers in the order of its requests, though replicas finish in another."""

from collections import deque
from collections.abc import Callable, Hashable
from threading import RLock

from keras_deepseek.inference.batching.batch import Request

Deliver = Callable[[Request], None]


class ClientOrder:
    """Holds an answer back until those of the client's earlier requests were delivered."""

    def __init__(self) -> None:
        # It is held while an answer is delivered: two threads must not do so for one client.
        self._lock = RLock()
        self._queues: dict[Hashable, deque[tuple[Request, Deliver]]] = {}

    def add(self, client: Hashable, request: Request, deliver: Deliver) -> None:
        """Takes the next request of a client.

        Args:
            client: A hashable value.
            request: `Request`. Whenever it is over, `settle` is called.
            deliver: Function of the request, called in the client's order if there is an answer.
        """
        with self._lock:
            self._queues.setdefault(client, deque()).append((request, deliver))

    def settle(self, client: Hashable) -> None:
        """Delivers the answers that are there, up to the first that is not."""
        with self._lock:
            queue = self._queues.get(client)
            while queue and queue[0][0].is_over:
                request, deliver = queue.popleft()
                if request.has_answer:
                    deliver(request)
            if not queue:
                self._queues.pop(client, None)
