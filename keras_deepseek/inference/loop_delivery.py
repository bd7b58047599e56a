"""Hands finished requests from the model's threads to event loops: one wake for a whole batch."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference.batch import Request

Waiter = asyncio.Future[dict[str, Array]]


class LoopDelivery:
    """Collects finished requests until `flush` gives each event loop its own in one call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._finished: dict[asyncio.AbstractEventLoop, list[tuple[Waiter, Request]]] = {}

    def open(self) -> tuple[Waiter, Callable[[Request], None]]:
        """Returns an awaitable of the running event loop, and the function that takes its request.

        Whoever calls the function calls `flush` afterwards.
        """
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()

        def deliver(request: Request) -> None:
            with self._lock:
                self._finished.setdefault(loop, []).append((waiter, request))

        return waiter, deliver

    def flush(self) -> None:
        """Wakes each event loop that has finished requests, once."""
        if not self._finished:
            return
        with self._lock:
            finished, self._finished = self._finished, {}
        for loop, pairs in finished.items():
            with contextlib.suppress(RuntimeError):  # Closed: nobody is left who waits.
                loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: list[tuple[Waiter, Request]]) -> None:
    for waiter, request in pairs:
        if waiter.done():
            continue
        if request.error is not None:
            waiter.set_exception(request.error)
        elif request.outputs is not None:
            waiter.set_result(request.outputs)
