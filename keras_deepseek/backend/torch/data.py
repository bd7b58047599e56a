"""Batches as Keras's training loop on PyTorch takes them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import torch

from keras_deepseek.backend.data.batch_stream import Epochs

_DTYPES = {
    *map(np.dtype, ("bool", "uint8", "int8", "int16", "int32", "int64")),
    *map(np.dtype, ("float16", "float32", "float64")),
}
"""What PyTorch and NumPy have in common."""


def prefers_own_feed(x: Any) -> bool:
    """Returns whether `feed_batches` is faster for data than how Keras itself feeds them."""
    return not isinstance(x, torch.utils.data.DataLoader)  # Keras hands its batches on.


def feed_batches(make_batches: Callable[[], Iterator[Any]], specs: Any) -> Iterable[Any]:
    """Returns what Keras's training loop goes through once an epoch."""
    # No `DataLoader`: each draws a number of PyTorch's shared generator whenever it is begun.
    return Epochs(make_batches, _to_tensor)


def _to_tensor(array: Any) -> Any:
    """Returns what Keras makes of a batch that is nobody else's, and so without its copy."""
    if type(array) is np.ndarray and array.dtype in _DTYPES and array.flags.writeable:
        array = torch.from_numpy(array)
    return keras.ops.convert_to_tensor(array)
