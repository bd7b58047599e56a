"""What variables hold, on the host."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array

_NOT_OF_NUMPY = {"bfloat16": 2}


def read_values(variables: Sequence[keras.Variable]) -> list[Array]:
    """Returns the values of variables, as copies.

    On the CPU the array of one may be the very memory that the next step writes to.

    Args:
        variables: Keras variables.
    """
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables]


def count_bytes(variables: Sequence[keras.Variable]) -> int:
    """Returns how many bytes the values of variables have.

    Args:
        variables: Keras variables, of any dtype but strings.
    """
    return sum(
        int(np.prod(each.shape)) * (_NOT_OF_NUMPY.get(each.dtype) or np.dtype(each.dtype).itemsize)
        for each in variables
    )
