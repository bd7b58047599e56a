"""What one file of ONNX holds: a protocol buffer ends at 2 GiB."""

import keras

from keras_deepseek.backend.host_values import count_bytes

LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights; nodes take some of the rest."""


def fits_one_file(model: keras.Model) -> bool:
    """Returns whether the weights of a model have room in one file.

    Args:
        model: `keras.Model`.
    """
    return count_bytes(model.variables) <= LARGEST_FILE
