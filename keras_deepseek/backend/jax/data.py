"""Batches as Keras's training loop on JAX takes them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from keras_deepseek.backend.keras_internals import from_scipy


def prefers_own_feed(x: Any) -> bool:
    """Returns whether `feed_batches` is faster for data than how Keras itself feeds them."""
    return False  # It is the same.


def feed_batches(make_batches: Callable[[], Iterator[Any]], specs: Any) -> Iterable[Any]:
    """Returns what Keras's training loop goes through once an epoch."""
    return _Batches(make_batches)


class _Batches:
    """What can be gone through once an epoch."""

    def __init__(self, make_batches: Callable[[], Iterator[Any]]) -> None:
        self._make_batches = make_batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self._make_batches():
            yield keras.tree.map_structure(from_scipy, batch, none_is_leaf=False)
