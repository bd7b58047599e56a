"""SIGTERM as a wish that a training asks after, instead of the end of the process."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignal:
    """Notes SIGTERM for as long as the block lasts.

    Python hands signals to the main thread alone: in another thread, nothing is changed. Where the
    block is left because a generator around it is closed, nobody asks any more: a signal that was
    noted goes to who had it before, which ends the process if nobody had.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            # `None` is a handler that was not set from Python, and can't be put back.
            self._previous = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous is None:
            return
        signal.signal(signal.SIGTERM, self._previous)
        self._previous = None
        if self.received and kind is GeneratorExit:
            signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
