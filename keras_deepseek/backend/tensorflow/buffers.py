"""What a model holds beside Keras's variables; on TensorFlow there is nothing."""

import keras

from keras_deepseek.artifacts.signature import Array


def read_buffers(model: keras.Model) -> dict[str, Array]:
    """Returns what a model holds beside Keras's variables, as copies by name."""
    return {}


def write_buffers(model: keras.Model, buffers: dict[str, Array]) -> None:
    """Puts what a model holds beside Keras's variables to what was read before."""
