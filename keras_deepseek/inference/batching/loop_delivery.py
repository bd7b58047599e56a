"""Hands finished requests from the model's threads to event loops: one wake for a whole batch."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference.batching.batch import Request

Waiter = asyncio.Future[dict[str, Array]]
Settle = Callable[[Request], None]
"""Takes a finished request, on its event loop."""

_logger = logging.getLogger(__name__)


class LoopDelivery:
    """Collects finished requests until `flush` gives each event loop its own in one call."""

    def __init__(self) -> None:
        self._finished: dict[asyncio.AbstractEventLoop, deque[tuple[Settle, Request]]] = {}

    def to_loop(self, settle: Settle) -> Callable[[Request], None]:
        """Returns what takes a finished request, on any thread, to the running event loop.

        Whoever calls it calls `flush` afterwards.

        Args:
            settle: Function of the request, called on the event loop.
        """
        loop = asyncio.get_running_loop()
        finished = self._finished.get(loop)
        if finished is None:
            finished = self._finished.setdefault(loop, deque())
        return lambda request: finished.append((settle, request))

    def flush(self) -> None:
        """Wakes each event loop that has finished requests, once."""
        for loop, finished in tuple(self._finished.items()):
            if loop.is_closed():  # Nobody is left who waits.
                self._finished.pop(loop, None)
            elif finished:
                try:
                    loop.call_soon_threadsafe(_settle_all, finished)
                except RuntimeError:  # It was closed in this moment.
                    self._finished.pop(loop, None)


def open_waiter() -> tuple[Waiter, Settle]:
    """Returns an awaitable of the running event loop, and what gives it its request's outcome."""
    waiter: Waiter = asyncio.get_running_loop().create_future()

    def settle(request: Request) -> None:
        if waiter.done():
            return
        if request.error is not None:
            waiter.set_exception(request.error)
        elif request.outputs is not None:
            waiter.set_result(request.outputs)

    return waiter, settle


def _settle_all(finished: deque[tuple[Settle, Request]]) -> None:
    while finished:  # Also what came since the loop was woken.
        settle, request = finished.popleft()
        try:
            settle(request)
        except Exception:  # The others are to be told all the same.
            _logger.exception("An answer could not be handed over.")
