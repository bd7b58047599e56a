"""Multiplication of gradients by a factor."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_deepseek.backend import current


def multiply_gradients(gradients: Sequence[Any], factor: Any) -> list[Any]:
    """Multiplies gradients by a factor, unless it is `None`."""
    if factor is None:
        return list(gradients)

    def multiply(gradient: Any) -> Any:
        with current().devices.on_device_of(gradient):
            return gradient * ops.cast(ops.convert_to_tensor(factor), gradient.dtype)

    return [None if gradient is None else multiply(gradient) for gradient in gradients]
