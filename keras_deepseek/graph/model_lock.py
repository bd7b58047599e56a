"""The lock of a model: calls hold it together, a trace holds it alone."""

import contextlib
import threading
import weakref
from collections.abc import Iterator

import keras


class SharedLock:
    """A lock that many threads hold together in a `with` block, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._holders: list[int] = []

    def __enter__(self) -> None:
        with self._condition:
            self._holders.append(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._holders.remove(threading.get_ident())
            self._condition.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the lock alone. A thread that holds it already does not wait for itself."""
        with self._condition:
            this_thread = {threading.get_ident()}
            self._condition.wait_for(lambda: this_thread.issuperset(self._holders))
            yield


_locks: weakref.WeakKeyDictionary[keras.Model, SharedLock] = weakref.WeakKeyDictionary()
_making_locks = threading.Lock()


def lock_of(model: keras.Model) -> SharedLock:
    """Returns the lock of a model. A trace holds it alone; calls of optimized models share it."""
    with _making_locks:
        return _locks.setdefault(model, SharedLock())
