"""Batches as Keras's training loop on PyTorch takes them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras


def prefers_own_feed() -> bool:
    """Returns whether `feed_batches` is no slower than how Keras itself feeds a training."""
    return True


def feed_batches(make_batches: Callable[[], Iterator[Any]], specs: Any) -> Iterable[Any]:
    """Returns what Keras's training loop goes through once an epoch."""
    return _Tensors(make_batches)


class _Tensors:
    """No `DataLoader`: each draws a number of PyTorch's shared generator whenever it is begun."""

    def __init__(self, make_batches: Callable[[], Iterator[Any]]) -> None:
        self._make_batches = make_batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self._make_batches():
            yield keras.tree.map_structure(keras.ops.convert_to_tensor, batch, none_is_leaf=False)
