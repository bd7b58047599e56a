"""SIGTERM as a wish that a training asks after, instead of the end of the process."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignal:
    """Notes SIGTERM for as long as the block lasts.

    Python hands signals to the main thread alone: in another thread, nothing is changed.
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
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
