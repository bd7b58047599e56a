"""A counter of the gRPC calls in flight, for a clean shutdown."""

import asyncio
import contextlib


class CallsInFlight:
    """Context manager that counts calls in flight. Use it on the server's event loop only."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self._count == 0:
            self._none.set()

    async def wait_for_none(self, seconds: float) -> None:
        """Waits until no call is in flight, or until the time is over."""
        self._none.clear()
        if self._count:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._none.wait(), seconds)
