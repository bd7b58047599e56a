"""Hands finished requests from the model's thread to event loops: one wake for a whole batch."""

import asyncio
import contextlib
import threading
from concurrent.futures import Future

from keras_deepseek.artifacts.signature import Array

_Answer = Future[dict[str, Array]]
_Waiter = asyncio.Future[dict[str, Array]]


class LoopDelivery:
    """Collects finished futures until `flush` gives each event loop its own in one call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._finished: dict[asyncio.AbstractEventLoop, list[tuple[_Waiter, _Answer]]] = {}

    def wait_for(self, answer: _Answer) -> _Waiter:
        """Returns an awaitable of the running event loop for `answer`.

        Cancelling the awaitable cancels `answer`.

        Args:
            answer: `concurrent.futures.Future`. Whoever completes it calls `flush` afterwards.
        """
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        waiter.add_done_callback(lambda waiter: answer.cancel() if waiter.cancelled() else None)
        answer.add_done_callback(lambda answer: self._collect(waiter, answer))
        if answer.done():  # It may have been completed, and flushed, before the callback was added.
            self.flush()
        return waiter

    def flush(self) -> None:
        """Wakes each event loop that has finished requests, once."""
        with self._lock:
            finished, self._finished = self._finished, {}
        for loop, pairs in finished.items():
            with contextlib.suppress(RuntimeError):  # Closed: nobody is left who waits.
                loop.call_soon_threadsafe(_settle, pairs)

    def _collect(self, waiter: _Waiter, answer: _Answer) -> None:
        if answer.cancelled():  # Only the waiter's own cancellation comes here.
            return
        with self._lock:
            self._finished.setdefault(waiter.get_loop(), []).append((waiter, answer))


def _settle(pairs: list[tuple[_Waiter, _Answer]]) -> None:
    for waiter, answer in pairs:
        if waiter.done():
            continue
        error = answer.exception()
        if error is None:
            waiter.set_result(answer.result())
        else:
            waiter.set_exception(error)
