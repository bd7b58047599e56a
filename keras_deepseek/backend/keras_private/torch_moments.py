"""Keras's `moments` on PyTorch, which normalization layers call."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras

from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes


def temporary_moments(moments: Callable[..., Any]) -> AbstractContextManager[None]:
    """Returns a context manager in which Keras on PyTorch uses another `moments` function."""
    return temporary_attributes(keras.src.backend.torch.nn, moments=moments)
