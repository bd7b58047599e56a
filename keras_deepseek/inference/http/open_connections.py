"""The open connections of an HTTP server: their time limits, and closing them at the end."""

import asyncio
from typing import TYPE_CHECKING

from keras_deepseek.inference.http.http_limits import HttpLimits

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_connection import HttpConnection


class OpenConnections:
    """The set of open connections of an HTTP server. Only the event loop's thread uses it.

    A timer for each request would cost too much, so one timer checks all connections, a few times
    within the shortest limit.
    """

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._open: set[HttpConnection] = set()
        self._is_draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._change = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: "HttpConnection") -> None:
        """Adds a new connection."""
        self._open.add(connection)
        if self._is_draining:
            connection.start_draining()

    def remove(self, connection: "HttpConnection") -> None:
        """Removes a closed connection."""
        self._open.discard(connection)
        self._change.set()

    def watch(self) -> None:
        """Checks the time limits of all connections, now and regularly."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.tick_seconds, self.watch)
        for connection in list(self._open):
            connection.check_time()

    def start_draining(self) -> None:
        """Lets all connections, also new ones, close after their next answer."""
        self._is_draining = True
        for connection in self._open:
            connection.start_draining()

    async def drain(self) -> None:
        """Closes all connections. Those in use get time to finish first."""
        limits, loop = self._limits, asyncio.get_running_loop()
        self.start_draining()
        end = loop.time() + limits.grace_seconds
        await self._wait_until_closed(min(end, loop.time() + limits.settle_seconds))
        for connection in list(self._open):
            connection.close_if_idle()
        await self._wait_until_closed(end)
        for connection in list(self._open):
            connection.abort()
        await self._wait_until_closed(loop.time() + limits.linger_seconds)
        if self._timer is not None:
            self._timer.cancel()

    async def _wait_until_closed(self, end: float) -> None:
        """Returns when all connections are closed, or at the loop's time `end`."""
        try:
            async with asyncio.timeout_at(end):
                while self._open:
                    self._change.clear()
                    await self._change.wait()
        except TimeoutError:
            pass
