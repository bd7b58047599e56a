"""Reading numbers off tensors, where TensorFlow has them already."""

from typing import Any

import tensorflow as tf

from keras_deepseek.artifacts.signature import Array


def read_integer(value: Any) -> int | None:
    """Returns an integer or integer scalar tensor as a number; `None` while it is traced."""
    if isinstance(value, tf.Tensor) and tf.is_symbolic_tensor(value):
        return None
    return int(value)


def read_array(value: Any) -> Array | None:
    """Returns a tensor's numbers where the host holds them; `None` where it must wait.

    A number that is only traced, or that an accelerator has yet to compute, is waited for.
    """
    is_here = can_read_shapes(value) and "CPU" in value.device
    return value.numpy() if is_here else None


def can_read_shapes(value: Any) -> bool:
    """Whether a tensor's numbers can be read, and shapes may follow from them at no cost."""
    return isinstance(value, tf.Tensor) and not tf.is_symbolic_tensor(value)
