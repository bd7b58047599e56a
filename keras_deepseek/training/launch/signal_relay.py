"""Receives the signals that are sent to the launcher."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class SignalRelay:
    """Records signals, calls a function for each of them, and wakes a selector.

    The function is called in the signal handler: the launcher may hang in a write to a log that
    nobody reads. A signal that is ignored, as SIGHUP is under `nohup`, stays ignored. `act` takes
    the number of a signal, and True for the first one.
    """

    def __init__(self, act: Callable[[int, bool], None]) -> None:
        self.received: list[int] = []
        self._act = act
        self._previous: dict[int, Any] = {}
        self.descriptor, self._written = os.pipe()
        for descriptor in (self.descriptor, self._written):
            os.set_blocking(descriptor, False)
        self._previous_descriptor = -1

    def __enter__(self) -> "SignalRelay":
        self._previous_descriptor = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        for number in _TO_END:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        # A handler is needed: a signal without one does not wake the selector.
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _do_nothing)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_descriptor)
        os.close(self.descriptor)
        os.close(self._written)

    def drain(self) -> None:
        """Empties the pipe that wakes the selector."""
        try:
            while os.read(self.descriptor, 4096):
                pass
        except BlockingIOError:
            pass

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        self._act(number, len(self.received) == 1)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass
