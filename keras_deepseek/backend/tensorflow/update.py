"""The update of variables on TensorFlow, where it is compiled with the step."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.backend.gradient_scale import convert_gradients, multiply_gradients, norm_of_all


def apply_update(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    factor: Any = None,
) -> None:
    """Does what `optimizer.apply` does, in the fastest way that the framework has."""
    # Of a sparse gradient Keras would square each row before it adds those of one index.
    dense = [None if gradient is None else densify(gradient) for gradient in gradients]
    optimizer.apply(multiply_gradients(dense, factor), variables)


def compile_update(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> Callable[[Sequence[Any]], None]:
    """Returns a function that updates variables by gradients as `optimizer.apply` does."""
    return lambda gradients: apply_update(optimizer, convert_gradients(gradients), variables)


def add_multiples(sums: Sequence[Any], tensors: Sequence[Any], factor: Any) -> list[Any]:
    """Returns sums, into which it may write, and multiples of as many tensors added to them."""
    return [each + factor * tensor for each, tensor in zip(sums, tensors, strict=True)]


def densify(gradient: Any) -> Any:
    """Returns a gradient as one tensor: that of an embedding may be sparse."""
    return tf.convert_to_tensor(gradient)  # Keras's function would leave it sparse.


def find_finite(tensors: Sequence[Any]) -> list[bool]:
    """Returns, for each tensor of floats, whether all of its numbers are finite."""
    # All are begun before the first is waited for.
    found = [tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors]
    return [bool(is_finite) for is_finite in found]


def global_norm(gradients: Sequence[Any]) -> Any:
    """Returns the norm of all gradients together, a float32 scalar."""
    return norm_of_all(gradients)
