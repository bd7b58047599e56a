"""Reading numbers off tensors, where TensorFlow has them already."""

from typing import Any

import tensorflow as tf


def read_integer(value: Any) -> int | None:
    """Returns an integer or integer scalar tensor as a number; `None` while it is traced."""
    if isinstance(value, tf.Tensor) and tf.is_symbolic_tensor(value):
        return None
    return int(value)


def can_read_shapes(value: Any) -> bool:
    """Whether a tensor's numbers can be read, and shapes may follow from them at no cost."""
    return isinstance(value, tf.Tensor) and not tf.is_symbolic_tensor(value)
