"""The event loop that a server runs on, in a thread of its own."""

import asyncio
import contextlib
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Returns what makes uvloop's loop, where that is installed, or `None` for Python's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Calls a function in a loop that runs in another thread; in none that is closed."""
    with contextlib.suppress(RuntimeError):  # It is closed: what was running in it has stopped.
        loop.call_soon_threadsafe(function)
