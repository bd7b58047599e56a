"""Values of variables in the memory of the host, their size, and products of gradients."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend import current

_NOT_OF_NUMPY = {"bfloat16": 2}

LARGEST_FILE = 2**31 - 2**24
"""The most bytes of weights in one ONNX file: a protocol buffer has at most 2 GiB."""


def read_values(variables: Sequence[keras.Variable]) -> list[Array]:
    """Copies the values of variables into arrays in host memory.

    On a CPU the array of a variable may share the memory that the next step writes to.
    """
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables]


def count_bytes(variables: Sequence[keras.Variable | keras.KerasTensor]) -> int:
    """Returns the total bytes of variables' values, except those of strings."""
    return sum(
        int(np.prod(variable.shape))
        * (_NOT_OF_NUMPY.get(variable.dtype) or np.dtype(variable.dtype).itemsize)
        for variable in variables
    )


def multiply_gradients(gradients: Sequence[Any], factor: Any) -> list[Any]:
    """Multiplies gradients by a factor, unless it is `None`."""
    if factor is None:
        return list(gradients)

    def multiply(gradient: Any) -> Any:
        with current().devices.on_device_of(gradient):
            return gradient * ops.cast(ops.convert_to_tensor(factor), gradient.dtype)

    return [None if gradient is None else multiply(gradient) for gradient in gradients]


def fits_one_file(model: keras.Model) -> bool:
    """Returns True if the weights of a model fit into one ONNX file."""
    return count_bytes(model.variables) <= LARGEST_FILE
