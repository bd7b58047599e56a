"""SIGTERM as an exception: what blocks until the server is stopped ends in order, as by Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator


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
