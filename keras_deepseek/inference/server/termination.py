"""Signals while the main thread waits for a server's end: none is lost; SIGTERM is as Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import TracebackType

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


class Interruption:
    """Lets SIGTERM, or Ctrl-C, end what is inside of `with`, whatever it makes of the signal.

    A handler can but raise an exception where Python happens to be. Amid the import of an extension
    that becomes an `ImportError`, or is dropped. So it is noted that the signal has come: `check`
    raises again what was dropped, and no error that follows the signal leaves the block. It is for
    the main thread.
    """

    def __init__(self) -> None:
        self._has_come = False

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.getsignal(number) for number in _signals()}
        for number in self._previous:
            signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, KeyboardInterrupt):
            return True
        return self._has_come and isinstance(error, Exception)

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if the signal has come."""
        if self._has_come:
            raise KeyboardInterrupt

    def _interrupt(self, _signal_number: int, _frame: object) -> None:
        self._has_come = True
        raise KeyboardInterrupt


def _signals() -> list[signal.Signals]:
    """Returns those to be heeded: a shell lets what runs in its background pass over Ctrl-C."""
    heeds_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return [signal.SIGTERM, *([signal.SIGINT] if heeds_ctrl_c else [])]
