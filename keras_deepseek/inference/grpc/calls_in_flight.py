"""The calls of gRPC that a server answers now, so that it can end behind the last of them."""

import asyncio
import contextlib


class CallsInFlight:
    """Counts calls: each is a `with` block, on the event loop of the server."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self._count == 0:
            self._none.set()

    async def end(self, seconds: float) -> None:
        """Returns at a moment when there is none, or when the time is over.

        Args:
            seconds: float. How long it waits.
        """
        self._none.clear()
        if self._count:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._none.wait(), seconds)
