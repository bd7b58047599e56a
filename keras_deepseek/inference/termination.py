"""Signals while the main thread waits for a server's end: none is lost; SIGTERM is as Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_LOOK_SECONDS = 0.5


def wait_heeding_signals(event: threading.Event) -> None:
    """Returns when the event is set.

    A signal that comes after Python has last looked for one, and before the system has begun to
    wait, does not end the wait: its handler would run when something else does. So it is looked for
    from time to time.

    Args:
        event: `threading.Event`.
    """
    while not event.wait(_LOOK_SECONDS):
        pass


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM raise `KeyboardInterrupt` inside of `with`; a second one ends the process.

    Python runs handlers on the main thread alone: on another, or where the process has a handler of
    its own, nothing is changed.

    Raises:
        KeyboardInterrupt: The signal has come.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(_signal_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
