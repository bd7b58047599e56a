"""Signals while the main thread waits for a server's end: none is lost, and each ends it in order.

`ServingEngine.serve(block=True)` and the command wait inside of an `Interruption`. The launcher of
`training` has another task: it passes signals on to the processes that it has started.
"""

import signal
import threading
from types import TracebackType
from typing import Any

_LOOK_SECONDS = 0.5

_BY_DEFAULT = (signal.SIG_DFL, signal.default_int_handler)

_HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""The terminal was closed; Windows has no word for it."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([_HANG_UP] if _HANG_UP else []))


def wait_heeding_signals(event: threading.Event) -> None:
    """Returns when the event is set.

    A signal that comes after Python has last looked for one, and before the system has begun to
    wait, does not end the wait: its handler would run when something else does. So it is looked for
    from time to time.
    """
    while not event.wait(_LOOK_SECONDS):
        pass


class Interruption:
    """Lets SIGTERM, Ctrl-C or SIGHUP end what is inside of `with`, whatever it makes of the signal.

    A handler can but raise an exception where Python happens to be. Amid the import of an extension
    that becomes an `ImportError`, or is dropped. So it is noted that the signal has come: `check`
    raises again what was dropped, and no error that follows the signal leaves the block.

    What the process passes over, as Ctrl-C in a shell's background and SIGHUP under `nohup`, it
    passes over here, too, and what it handles itself stays its own. Python runs handlers on the
    main thread alone: on another nothing is changed. Behind the block all is as before, so that a
    second signal ends the process by its default; but for SIGHUP, which a terminal that is closed
    sends twice, by the shell and by the system: once it has come, it is passed over.

    Args:
        takes_sigterm: boolean. Whether SIGTERM is this block's where the process has a handler of
            its own, as the command line has. Defaults to `False`.
    """

    def __init__(self, *, takes_sigterm: bool = False) -> None:
        self.has_come = False
        self._takes_sigterm = takes_sigterm
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                is_taken = self._takes_sigterm and number == signal.SIGTERM
                if is_taken or handler in _BY_DEFAULT:
                    self._previous[number] = handler
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
        if isinstance(error, KeyboardInterrupt):  # It may be of a handler of the process's own.
            self.has_come = True
        return self.has_come and isinstance(error, Exception | KeyboardInterrupt)

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if the signal has come."""
        if self.has_come:
            raise KeyboardInterrupt

    def wait(self, event: threading.Event) -> None:
        """Returns when the event is set, or raises `KeyboardInterrupt` when the signal has come."""
        self.check()
        while not event.wait(_LOOK_SECONDS):
            self.check()

    def _interrupt(self, number: int, _frame: object) -> None:
        if number == _HANG_UP:
            self._previous[signal.Signals(number)] = signal.SIG_IGN
            signal.signal(number, signal.SIG_IGN)
        self.has_come = True
        raise KeyboardInterrupt
