"""A connection that asks again and again, and now and then hangs up; a protocol, for it is fast."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

DISCONNECT, LEAVE = 0.01, 0.02
"""The shares of requests after which a client does not wait for its answer, or goes with it."""


class StressConnection(asyncio.Protocol):
    """Sends what `progress` has until it is over.

    Args:
        progress: `day.Progress`.
        reconnect: function that is called when the connection is over.
    """

    def __init__(self, progress: Any, reconnect: Callable[[], None]) -> None:
        self._progress = progress
        self._reconnect = reconnect
        self._buffer = b""
        self._expected = 0
        self._is_leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks."""
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Reads an answer, and asks again."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        length = int(head[head.find(b"content-length:") + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        self._buffer = b""
        progress, status = self._progress, int(head[9:12])
        progress.statuses[status] += 1
        if status != self._expected:
            progress.unexpected[self._expected, status] += 1
        if progress.source.random() < LEAVE:
            self._leave()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Another takes its place."""
        if not self._is_leaving:
            self._progress.lost += 1
        self._reconnect()

    def _send(self) -> None:
        progress = self._progress
        if progress.is_over or progress.sent >= progress.goal:
            self._leave()
            return
        ((request, self._expected),) = progress.source.choices(progress.requests, progress.weights)
        self._transport.write(request)
        progress.sent += 1
        if progress.source.random() < DISCONNECT:
            progress.num_disconnects += 1
            self._leave()

    def _leave(self) -> None:
        self._is_leaving = True
        self._transport.close()
