"""Reading of variables into the memory of the host."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array

_NOT_OF_NUMPY = {"bfloat16": 2}


def read_values(variables: Sequence[keras.Variable]) -> list[Array]:
    """Copies the values of variables into arrays in host memory.

    On a CPU the array of a variable may share the memory that the next step writes to.
    """
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables]


def count_bytes(variables: Sequence[keras.Variable]) -> int:
    """Returns the total bytes of variables' values, except those of strings."""
    return sum(
        int(np.prod(variable.shape))
        * (_NOT_OF_NUMPY.get(variable.dtype) or np.dtype(variable.dtype).itemsize)
        for variable in variables
    )
