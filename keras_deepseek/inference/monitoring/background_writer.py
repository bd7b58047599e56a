"""A thread that writes log lines and spans, so that requests never wait for a file or an exporter.

`logging.handlers.QueueListener` does not fit: it wakes its thread for every record, does not count
dropped records, and at the end waits forever for a handler that hangs.
"""

import atexit
import contextlib
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

MAX_WAITING = 8192
"""The number of items that may wait to be written. Further items are dropped and counted."""

INTERVAL = 0.05
"""Seconds that items are collected before they are written together."""

END_SECONDS = 1.0
"""Seconds that the end of the process waits for unwritten items."""

_Item = TypeVar("_Item")

_logger = logging.getLogger(__name__)


class BackgroundWriter(Generic[_Item]):
    """Writes items, such as log lines, in a background thread, in the order in which they came.

    Any thread may add items. The first item starts the thread. When the process ends, waiting items
    are still written. On the thread, `write` is called with the items and the number of those that
    were dropped since its last call. Its first exception is logged. For `interval` seconds items
    are collected before each call.
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
        # An event is set when all items before it are written.
        self._queue: SimpleQueue[_Item | threading.Event] = SimpleQueue()
        self._dropped = 0
        self._reported = 0
        self._has_failed = False
        self._hurry = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def put(self, item: _Item) -> None:
        """Adds an item to be written, or drops it if too many wait. Never blocks."""
        if self._queue.qsize() >= self._max_waiting:
            self._dropped += 1
            return
        self._queue.put(item)
        if self._thread is None:
            self._start()

    def flush(self, timeout: float = END_SECONDS) -> bool:
        """Waits until all items added so far are written; False after `timeout` seconds."""
        written = threading.Event()
        self._queue.put(written)
        self._hurry.set()
        if self._thread is None:
            self._start()
        return written.wait(timeout)

    def close(self, timeout: float | None = END_SECONDS) -> None:
        """Writes the waiting items and ends the thread, or abandons it after `timeout` seconds."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._closing.set()
            self._queue.put(threading.Event())  # Wakes the thread.
            self._hurry.set()
        thread.join(timeout)
        atexit.unregister(self.close)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                # A thread that hung when it was closed keeps its own event.
                self._closing = threading.Event()
                self._thread = threading.Thread(
                    target=self._work, args=(self._closing,), name=self._name, daemon=True
                )
                self._thread.start()
                atexit.register(self.close)

    def _work(self, closing: threading.Event) -> None:
        while not (closing.is_set() and self._queue.empty()):
            entries = [self._queue.get()]
            if not closing.is_set():
                self._hurry.wait(self._interval)
                self._hurry.clear()
            with contextlib.suppress(Empty):
                while True:
                    entries.append(self._queue.get_nowait())
            self._write_all([entry for entry in entries if not isinstance(entry, threading.Event)])
            for entry in entries:
                if isinstance(entry, threading.Event):
                    entry.set()

    def _write_all(self, items: list[_Item]) -> None:
        dropped = self._dropped - self._reported
        if not items and not dropped:
            return
        self._reported += dropped
        try:
            self._write(items, dropped)
        # No failure of a file or an exporter may end the thread.
        except Exception:
            if not self._has_failed:
                self._has_failed = True
                _logger.exception("The thread %r can't write. This is logged once.", self._name)
