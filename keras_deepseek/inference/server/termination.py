"""Signals that end a server while the main thread waits. None is lost, and each ends it in order.

`ServingEngine.serve(block=True)` and the command wait inside an `Interruption`. The launcher of
`training` is different: it passes signals on to the processes that it started.
"""

import _thread
import signal
import threading
import time
from types import TracebackType
from typing import Any

_POLL_SECONDS = 0.5

_BY_DEFAULT = (signal.SIG_DFL, signal.default_int_handler)

_HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""The terminal was closed. Windows has no such signal."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([_HANG_UP] if _HANG_UP else []))


def wait_heeding_signals(event: threading.Event) -> None:
    """Blocks until the event is set, and lets signal handlers run meanwhile.

    A signal that arrives just before the system call of the wait does not interrupt it, and its
    handler would run only after the wait. So the wait ends and begins again regularly.
    """
    while not event.wait(_POLL_SECONDS):
        pass


class Interruption:
    """Context manager that ends its block on SIGTERM, Ctrl-C or SIGHUP, whatever the block does.

    A signal handler can only raise an exception wherever Python happens to be. During the import of
    an extension module that becomes an `ImportError`, or is lost. So the handler also stores the
    signal: `check` raises a lost `KeyboardInterrupt` again, and no error after the signal leaves
    the block.

    Signals that the process ignores stay ignored, as Ctrl-C in a shell's background or SIGHUP under
    `nohup`. Signals that the process handles keep their handler, except that `takes_sigterm`
    handles SIGTERM nevertheless. Python runs handlers on the main thread alone, so on another
    thread nothing changes. After the block the old handlers are back, so that a second signal ends
    the process. Only SIGHUP is ignored from then on, if it came: a closed terminal sends it twice,
    by the shell and by the system.

    Python drops an exception that is raised in a callback of its garbage collector, such as JAX's.
    So the signal is repeated until the block ends, or waits by a method of this class.
    """

    def __init__(self, *, takes_sigterm: bool = False) -> None:
        self.has_come = False
        self._takes_sigterm = takes_sigterm
        self._previous: dict[signal.Signals, Any] = {}
        self._is_heard = threading.Event()

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                is_taken = self._takes_sigterm and number == signal.SIGTERM
                if is_taken or handler in _BY_DEFAULT:
                    self._previous[number] = handler
                    signal.signal(number, self._interrupt)
            if self._previous:
                threading.Thread(target=self._repeat, name="signals", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._is_heard.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, KeyboardInterrupt):  # The process's own handler may have raised it.
            self.has_come = True
        return self.has_come and isinstance(error, Exception | KeyboardInterrupt)

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if a signal has come."""
        if self.has_come:
            raise KeyboardInterrupt

    def wait(self, event: threading.Event) -> None:
        """Blocks until the event is set. Raises `KeyboardInterrupt` when a signal has come."""
        self._is_heard.set()
        self.check()
        while not event.wait(_POLL_SECONDS):
            self.check()

    def wait_for_another(self, event: threading.Event, seconds: float) -> None:
        """Blocks, after a signal, until the event is set, the time is over, or the next signal."""
        self._is_heard.set()
        self.has_come = False
        end = time.monotonic() + seconds
        try:
            while not self.has_come and (seconds_left := end - time.monotonic()) > 0:
                if event.wait(min(seconds_left, _POLL_SECONDS)):
                    break
        except KeyboardInterrupt:  # The next signal.
            pass
        finally:
            self.has_come = True

    def _repeat(self) -> None:
        # SIGHUP is ignored once it has come.
        numbers = [number for number in self._previous if number != _HANG_UP]
        while numbers and not self._is_heard.wait(_POLL_SECONDS):
            if self.has_come:
                _thread.interrupt_main(numbers[0])

    def _interrupt(self, number: int, _frame: object) -> None:
        if self.has_come and self._is_heard.is_set():
            return  # It was repeated at the moment when it was heard.
        if number == _HANG_UP:
            self._previous[signal.Signals(number)] = signal.SIG_IGN
            signal.signal(number, signal.SIG_IGN)
        self.has_come = True
        raise KeyboardInterrupt
