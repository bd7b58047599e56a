"""The size limit of a single ONNX file: a protocol buffer has at most 2 GiB."""

import keras

from keras_deepseek.backend.host_values import count_bytes

LARGEST_FILE = 2**31 - 2**24
"""The most bytes of weights. The nodes take part of the rest."""


def fits_one_file(model: keras.Model) -> bool:
    """Returns True if the weights of a model fit into one ONNX file."""
    return count_bytes(model.variables) <= LARGEST_FILE
