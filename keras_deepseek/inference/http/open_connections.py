"""All connections of one HTTP server: one clock for their time limits, and their end."""

import asyncio
from typing import TYPE_CHECKING

from keras_deepseek.inference.http.http_limits import HttpLimits

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_connection import HttpConnection


class OpenConnections:
    """The connections that are open. It is used on the event loop alone.

    A timer for each request would cost more than all else that is noted of it, so one timer looks
    at all connections, a few times in the shortest limit.
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
        """Takes a connection that was made."""
        self._open.add(connection)
        if self._is_draining:
            connection.start_draining()

    def remove(self, connection: "HttpConnection") -> None:
        """Forgets a connection that is lost."""
        self._open.discard(connection)
        self._change.set()

    def watch(self) -> None:
        """Looks at the clock of every connection, now and from time to time."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.tick_seconds, self.watch)
        for connection in list(self._open):
            connection.check_time()

    def start_draining(self) -> None:
        """Lets every connection, also those to come, close after its next answer."""
        self._is_draining = True
        for connection in self._open:
            connection.start_draining()

    async def drain(self) -> None:
        """Returns when every connection is closed; those in use are given time to finish."""
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
        """Returns when none is open, or at the time `end` of the loop."""
        try:
            async with asyncio.timeout_at(end):
                while self._open:
                    self._change.clear()
                    await self._change.wait()
        except TimeoutError:
            pass
