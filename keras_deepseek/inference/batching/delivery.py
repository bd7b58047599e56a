"""Delivers answers from the model's threads: to a thread, to an event loop, or in a client's order.

An event loop gets one wake-up for all answers of a batch.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from threading import RLock

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference.batching.batch import Request

Answer = Future[dict[str, Array]]
Waiter = asyncio.Future[dict[str, Array]]
Deliver = Callable[[Request], None]
"""A function that takes a finished request."""
Settle = Deliver
"""The same, called on the event loop of the request."""

_logger = logging.getLogger(__name__)


def open_future() -> tuple[Answer, Deliver]:
    """Returns a future, and the function that sets its result from a finished request."""
    answer: Answer = Future()

    def deliver(request: Request) -> None:
        if not answer.set_running_or_notify_cancel():
            return
        if request.error is not None:
            answer.set_exception(request.error)
        else:
            answer.set_result(request.outputs or {})

    return answer, deliver


class LoopDelivery:
    """Collects finished requests until `flush` hands them to their event loops."""

    def __init__(self) -> None:
        self._calls: dict[asyncio.AbstractEventLoop, deque[Callable[[], None]]] = {}

    def to_loop(self, settle: Settle) -> Deliver:
        """Returns a function that any thread may call with a finished request.

        `settle` is called on the running event loop. The caller must call `flush` afterwards.
        """
        call_soon = self.caller()
        return lambda request: call_soon(partial(settle, request))

    def caller(self) -> Callable[[Callable[[], None]], None]:
        """Returns a function that any thread may call with a function.

        The running event loop calls that one, after `flush`.
        """
        loop = asyncio.get_running_loop()
        calls = self._calls.get(loop)
        if calls is None:
            calls = self._calls.setdefault(loop, deque())
        return calls.append

    def flush(self) -> None:
        """Hands finished requests to their event loops, by one wake-up for each loop."""
        for loop, calls in tuple(self._calls.items()):
            if loop.is_closed():  # Nobody waits any more.
                self._calls.pop(loop, None)
            elif calls:
                try:
                    loop.call_soon_threadsafe(_call_all, calls)
                except RuntimeError:  # The loop was closed at this moment.
                    self._calls.pop(loop, None)


def open_waiter() -> tuple[Waiter, Settle]:
    """Returns a future of the running event loop, and the function that sets its result."""
    waiter: Waiter = asyncio.get_running_loop().create_future()

    def settle(request: Request) -> None:
        if waiter.done():
            return
        if request.error is not None:
            waiter.set_exception(request.error)
        elif request.outputs is not None:
            waiter.set_result(request.outputs)

    return waiter, settle


def _call_all(calls: deque[Callable[[], None]]) -> None:
    while calls:  # Requests that came after the wake-up are included.
        call = calls.popleft()
        try:
            call()
        except Exception:  # The other requests must be settled, too.
            _logger.exception("An answer could not be handed over.")


class ClientOrder:
    """Holds an answer back until the answers of the client's earlier requests were delivered.

    Replicas may finish them in another order.
    """

    def __init__(self) -> None:
        # It is held during delivery: two threads must not deliver to one client at once.
        self._lock = RLock()
        self._queues: dict[Hashable, deque[tuple[Request, Deliver]]] = {}

    def add(self, client: Hashable, request: Request, deliver: Deliver) -> None:
        """Adds a client's next request to the order.

        The caller calls `settle` after the request is over. `deliver` is then called in the
        client's order if there is an answer.
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
