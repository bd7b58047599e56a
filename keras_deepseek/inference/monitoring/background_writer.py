"""Takes what is noted of requests from the threads that answer them, and writes it on another.

`access_log` and `request_traces` say what is written, and where. What they write to may be slow, or
hang: requests do not wait for it, and what has to wait here has a bound.
"""

import atexit
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

MAX_WAITING = 8192
"""Items that may wait to be written. More are dropped, and counted."""

INTERVAL = 0.05
"""Seconds that items gather before they are written together."""

END_SECONDS = 1.0
"""How long an end waits for what is not written yet."""

_Item = TypeVar("_Item")

_logger = logging.getLogger(__name__)


class BackgroundWriter(Generic[_Item]):
    """Writes items in the order in which they came. Any thread may put some.

    The thread starts with the first item. What still waits at the end of the process is written
    before it ends.

    Args:
        write: Function of a list of items, and of how many were dropped since its last call. It is
            called on the writer's thread alone. What it raises is logged once.
        name: string. Of the thread.
        max_waiting: integer. Defaults to `8192`.
        interval: float. Seconds. Defaults to `0.05`.
    """

    def __init__(
        self,
        write: Callable[[list[_Item], int], None],
        *,
        name: str,
        max_waiting: int = MAX_WAITING,
        interval: float = INTERVAL,
    ) -> None:
        self._write = write
        self._name = name
        self._max_waiting = max_waiting
        self._interval = interval
        self._items: deque[_Item] = deque()
        self._flushes: deque[threading.Event] = deque()
        self._dropped = 0
        self._told = 0
        self._has_failed = False
        # Whoever puts something while it rests, or has not begun, has to wake it.
        self._is_resting = True
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def put(self, item: _Item) -> None:
        """Takes an item, or drops it where too many wait. It never blocks.

        Args:
            item: Anything.
        """
        if len(self._items) >= self._max_waiting:
            self._dropped += 1
            return
        self._items.append(item)
        if self._is_resting:
            self._awaken()

    def flush(self, timeout: float = END_SECONDS) -> bool:
        """Returns when all that was put before is written, or when the time is over.

        Args:
            timeout: float. Seconds. Defaults to `1.0`.

        Returns:
            Whether it is written.
        """
        written = threading.Event()
        self._flushes.append(written)
        self._awaken()
        self._hurry.set()
        return written.wait(timeout)

    def close(self, timeout: float = END_SECONDS) -> None:
        """Writes what waits, and ends the thread. What hangs is left alone when the time is over.

        Args:
            timeout: float. Seconds. Defaults to `1.0`.
        """
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._closing.set()
            self._wake.set()
            self._hurry.set()
        thread.join(timeout)
        atexit.unregister(self.close)

    def _awaken(self) -> None:
        with self._lock:
            self._is_resting = False
            self._wake.set()
            if self._thread is None:
                # One that hung when it was closed is told by its own.
                self._closing = threading.Event()
                self._thread = threading.Thread(
                    target=self._work, args=(self._closing,), name=self._name, daemon=True
                )
                self._thread.start()
                atexit.register(self.close)

    def _work(self, closing: threading.Event) -> None:
        while True:
            if not closing.is_set():
                self._hurry.wait(self._interval)
                self._hurry.clear()
            # They were put after the items that they wait for.
            flushes = _take_all(self._flushes)
            items = _take_all(self._items)
            self._write_all(items)
            for written in flushes:
                written.set()
            if items or flushes:
                continue
            self._is_resting = True
            # From here on who puts something wakes it. What was put before has woken nobody.
            if self._items or self._flushes:
                self._is_resting = False
            elif closing.is_set():
                return
            else:
                self._wake.wait()
                self._wake.clear()
                self._is_resting = False

    def _write_all(self, items: list[_Item]) -> None:
        dropped = self._dropped - self._told
        if not items and not dropped:
            return
        self._told += dropped
        try:
            self._write(items, dropped)
        # Whatever is wrong with what is written to, requests go on.
        except Exception:
            if not self._has_failed:
                self._has_failed = True
                _logger.exception("What is noted of requests can't be written; told once.")


def _take_all(queue: "deque[_Item]") -> list[_Item]:
    items: list[_Item] = []
    with contextlib.suppress(IndexError):  # One that hung, and was closed, may take some, too.
        items.extend(queue.popleft() for _ in range(len(queue)))
    return items
