"""The event loop of a server, which runs in its own thread."""

import asyncio
import contextlib
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Returns the factory of uvloop's event loop, or `None` for Python's if uvloop is missing."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Calls a function in an event loop of another thread. Does nothing if the loop is closed."""
    with contextlib.suppress(RuntimeError):  # The loop is closed: all that ran in it has stopped.
        loop.call_soon_threadsafe(function)
