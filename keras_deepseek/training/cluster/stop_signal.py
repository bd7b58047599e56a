"""SIGTERM as a wish that a training asks after, instead of the end of the process."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Iterator
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
            _let_children_end()
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
        # A loop that is left open ends when it is collected; others may have come since.
        if signal.getsignal(signal.SIGTERM) == self._note:
            signal.signal(signal.SIGTERM, self._previous)
        self._previous = None
        if self.received and kind is GeneratorExit:
            signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    @property
    def previous(self) -> Any:
        """The handler that was there before; `None` outside of the block."""
        return self._previous


@contextlib.contextmanager
def keeping_stop_signal() -> Iterator[None]:
    """Puts the handler of SIGTERM back at the end of the block.

    JAX and TensorFlow take the signal over when processes join, and the process outlives it.
    """
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if previous is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous)


@functools.cache
def _let_children_end() -> None:
    """Gives processes that are forked from now on, as data loaders are, the handler of before.

    A pool ends its workers by SIGTERM and waits for them: who only notes it would never end.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_put_back)


def _put_back() -> None:
    noting = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(noting, StopSignal) and noting.previous is not None:
        signal.signal(signal.SIGTERM, noting.previous)
