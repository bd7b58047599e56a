"""The size of gradients, by Keras's operations: for frameworks that compile them into one pass."""

from collections.abc import Sequence
from typing import Any

from keras import ops


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
    return [
        gradient
        if gradient is None or factor is None
        else gradient * ops.cast(factor, gradient.dtype)
        for gradient in gradients
    ]
