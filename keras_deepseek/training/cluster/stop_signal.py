"""Handles SIGTERM as a request to end the training in order."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class StopSignal:
    """Context manager that records SIGTERM instead of ending the process.

    Python delivers signals to the main thread only: in another thread, nothing is changed. The
    block may end because a generator around it is closed. A signal that was recorded is then raised
    again, for the previous handler, which by default ends the process.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            _let_children_end()
            # `None` is a handler that was not set from Python and can't be restored.
            self._previous = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._previous is None:
            return
        # A generator may be closed by garbage collection, after another handler was set.
        if signal.getsignal(signal.SIGTERM) == self._note:
            signal.signal(signal.SIGTERM, self._previous)
        self._previous = None
        if self.received and kind is GeneratorExit:
            signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    @property
    def previous(self) -> Any:
        """The SIGTERM handler from before the block; `None` outside the block."""
        return self._previous


@contextlib.contextmanager
def keeping_stop_signal() -> Iterator[None]:
    """Context manager that restores the SIGTERM handler at its end.

    JAX and TensorFlow replace it when processes join; without this, SIGTERM would not end the
    process.
    """
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if previous is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous)


@functools.cache
def _let_children_end() -> None:
    """Makes forked processes, such as data loaders, restore the previous SIGTERM handler.

    A pool ends its workers by SIGTERM and waits for them: a worker that only records the signal
    would never end.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_restore_in_child)


def _restore_in_child() -> None:
    noting = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(noting, StopSignal) and noting.previous is not None:
        signal.signal(signal.SIGTERM, noting.previous)
