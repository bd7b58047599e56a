"""The size of gradients, by Keras's operations: for frameworks that compile them into one pass."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_deepseek.backend import current


def norm_of_all(gradients: Sequence[Any]) -> Any:
    """Returns the norm of all gradients together, a float32 scalar.

    Args:
        gradients: Tensors.
    """
    squares = [ops.sum(ops.square(ops.cast(gradient, "float32"))) for gradient in gradients]
    return ops.sqrt(ops.sum(ops.stack(squares)))


def convert_gradients(gradients: Sequence[Any]) -> list[Any]:
    """Returns gradients as tensors.

    Args:
        gradients: Arrays, or `None` where there is none.
    """
    return [None if each is None else ops.convert_to_tensor(each) for each in gradients]


def multiply_gradients(gradients: Sequence[Any], factor: Any) -> list[Any]:
    """Returns gradients times a factor.

    Args:
        gradients: Tensors, or `None` where there is none.
        factor: Scalar tensor, or `None`, which leaves them as they are.
    """
    if factor is None:
        return list(gradients)

    def multiply(gradient: Any) -> Any:
        with current().devices.beside(gradient):
            return gradient * ops.cast(ops.convert_to_tensor(factor), gradient.dtype)

    return [None if gradient is None else multiply(gradient) for gradient in gradients]
